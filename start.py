"""Sets the course up, opens it, and keeps it up to date. Needs Python 3.11 to 3.14 and nothing else.

python3 start.py            set the course up and open your notebooks, which are in work/, in JupyterLab
python3 start.py update     a new version of the course, your answers in it; a folder or a zip file after it: from there
python3 start.py reset 03   chapter 03 afresh; your old notebook is kept in work/old/
python3 start.py progress   which exercises you have passed; with 03 after it one chapter's, with --forget
                            the record of it is deleted
python3 start.py setup      the set-up alone
python3 start.py test       the set-up, then every test and every notebook

--cpu, --cuda             which build of torch to install. Without either: the one an earlier run chose;
                          the first time CUDA where nvidia-smi is found, else CPU
any other option          goes on to JupyterLab with all that follows it, for example --no-browser or --port 9000;
                          so does what stands after --

COURSE_TORCH_INDEX=pip    take torch from wherever pip's own configuration points, as CI does
COURSE_TORCH_INDEX=URL    take torch from this package index
COURSE_PROGRESS=FILE      keep the record of your exercises there and not in work/progress.json; off: keep none
"""

# Python reads a whole file before it runs a line, so nothing in this one may be newer than Python 2.7. What the
# commands do is in utils/start/.
import os
import re
import subprocess
import sys

HOME = os.path.dirname(os.path.abspath(__file__))


def fitting(home):
    """The Pythons that pyproject.toml asks for, the oldest and the first that is too new, as in ((3, 11), (3, 15))."""
    with open(os.path.join(home, "pyproject.toml"), "rb") as text:
        found = re.search(r'\nrequires-python = ">=3\.(\d+),<3\.(\d+)"', text.read().decode("utf-8"))
    return (3, int(found.group(1))), (3, int(found.group(2)))


def starts(command):
    """Whether a Python of that name is there and starts."""
    try:
        with open(os.devnull, "w") as nowhere:
            return subprocess.call(command + ["-c", ""], stdout=nowhere, stderr=nowhere) == 0
    except OSError:
        return False


def refusal(home, version):
    """What to tell somebody whose Python is too old or too new; None for one that fits."""
    oldest, end = fitting(home)
    if oldest <= tuple(version[:2]) < end:
        return None
    names = ["3.%d" % minor for minor in range(end[1] - 1, oldest[1] - 1, -1)]
    launchers = [["py", "-" + name] if os.name == "nt" else ["python" + name] for name in names]
    there = [" ".join(launcher) for launcher in launchers if starts(launcher)]
    usual = names[1]
    return "The course needs Python %s to %s (its packages exist for these) and this is %d.%d.%d, so %s" % (
        (names[-1], names[0])
        + tuple(version[:3])
        + (
            "run this instead: %s start.py" % there[0]
            if there
            else "get one, with `uv python install %s`, from your system's packages or from "
            "https://www.python.org/downloads/, and run this command with it: python%s start.py" % (usual, usual),
        )
    )


if __name__ == "__main__":
    refused = refusal(HOME, sys.version_info)
    if refused:
        sys.exit(refused)
    sys.path[:0] = [] if HOME in sys.path else [HOME]
    for stream in (sys.stdout, sys.stderr):  # a folder's name may hold letters that a log's encoding doesn't have
        stream.reconfigure(errors="backslashreplace")
    from utils.start.commands import main

    from pathlib import Path

    sys.exit(main(sys.argv[1:], Path(HOME), __doc__.strip()))
