"""Sets the course up and opens it, or sets it up and tests it. Needs Python 3.11 or newer and nothing else.

python3 start.py          make .venv, install the course into it, open JupyterLab at the first notebook
python3 start.py test     the same set-up, then every test and every notebook
python3 start.py setup    the set-up alone
python3 start.py progress which exercises you have passed; with 03 after it one chapter's, with --forget
                          the record of it is deleted

--cpu, --cuda             which build of torch to install. Without either: the one an earlier run chose;
                          the first time CUDA where nvidia-smi is found, else CPU
any other option          goes on to JupyterLab, for example --no-browser or --port=9000

COURSE_TORCH_INDEX=pip    take torch from wherever pip's own configuration points, as CI does
COURSE_TORCH_INDEX=URL    take torch from this package index
COURSE_PROGRESS=FILE      keep the record of your exercises there and not in work/progress.json; off: keep none
"""

import sys

# Python reads a whole file before it runs a line: nothing in this file may use syntax newer than Python 3.6.
if sys.version_info < (3, 11):
    import shutil
    import subprocess

    newer = []
    for name in ("python3.13", "python3.12", "python3.11"):
        if shutil.which(name) and subprocess.call([name, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            newer.append(name)
    sys.exit(
        "Python 3.11 or newer is needed; this is {}.{}.{}, so {}".format(
            sys.version_info[0],
            sys.version_info[1],
            sys.version_info[2],
            "run this instead: {} start.py".format(newer[0])
            if newer
            else "get it from https://www.python.org/downloads/ and run this command with it.",
        )
    )

import hashlib
import importlib.util
import json
import os
import platform
import queue
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
PYTORCH_INDEX = "https://download.pytorch.org/whl/"
GIGABYTES = {"cpu": 4, "cuda": 12}  # what the environment, the downloads and pip's cache take together
OLDEST_MACOS = 14  # for which torch has wheels
FIRST_NOTEBOOK = "notebooks/00_start_here.ipynb"

UTF8 = {"PYTHONUTF8": "1"}  # else a Python on Windows reads the course's files in the code page of the country

# Files in .venv:
STAMP = "lora-course.json"  # what a finished set-up installed
UNFINISHED = "lora-course.unfinished"  # there while a set-up runs, and after one that was interrupted
LOG = "lora-course.log"  # all that pip said

AGAIN = "and run the same command again."
NO_SPACE = re.compile(r"No space left on device|Errno 28\b|WinError 112\b|Disk quota exceeded")
NO_INDEX = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|[Tt]imed out|ProxyError|SSLError"
    r"|Max retries exceeded|Connection (refused|reset|broken|aborted)|Network is unreachable"
    r"|name resolution|Name or service not known|getaddrinfo failed|nodename nor servname"
)
PATH_TOO_LONG = re.compile(r"Long Path support|WinError 206\b|Errno (36|63)\b")
IN_USE = re.compile(r"WinError (5|32)\b")  # Windows keeps a file that a program has open from being replaced
NO_SUCH_VERSION = re.compile(r"No matching distribution found for (\S+)")


class Trouble(Exception):
    """Something for the person at the keyboard to mend; its text says in one sentence what and how."""


# --------------------------------------------------------------------------------------------- what is wanted


def parse(arguments):
    """Splits the command line into the command, the chosen build of torch or None, and the other words.

    Those are JupyterLab's options, or what `progress` is to show. Raises :class:`Trouble` for both builds at once, and
    for options that `test` and `setup` don't know.
    """
    rest = list(arguments)
    command = rest.pop(0) if rest and rest[0] in ("test", "setup", "progress") else "lab"
    if command == "progress":
        return command, None, rest
    builds = [name for name in ("cpu", "cuda") if "--" + name in rest]
    if len(builds) == 2:
        raise Trouble("--cpu and --cuda exclude each other; leave one of them out.")
    rest = [option for option in rest if option not in ("--cpu", "--cuda")]
    if rest and command != "lab":
        pytest = f"{python_of(Path('.venv'))} -m pytest tests/FILE"
        raise Trouble(
            f"`start.py {command}` takes no option but --cpu or --cuda, and got {rest[0]}"
            + (f"; for single tests run: {pytest}" if command == "test" else ".")
        )
    return command, builds[0] if builds else None, rest


def torch_choice(option, environment, before):
    """Says which torch is wanted: "cpu", "cuda", "pip" (pip's own configuration) or the address of an index.

    In this order: the option given, COURSE_TORCH_INDEX, what an earlier run chose, what the machine has.
    """
    found = "cuda" if shutil.which("nvidia-smi") else "cpu"
    return option or environment.get("COURSE_TORCH_INDEX") or before or found


def torch_index(choice, system):
    """Gives the index that has the chosen build for this system; None where pip's own configuration has it.

    PyPI has the CUDA build for Linux and the CPU build for Windows and macOS; PyTorch's index has the others.
    Raises :class:`Trouble` for CUDA on macOS, and for a choice that is no address.
    """
    if choice == "pip":
        return None
    if choice == "cpu":
        return PYTORCH_INDEX + "cpu" if system == "Linux" else None
    if choice == "cuda":
        if system == "Darwin":
            raise Trouble("There is no CUDA build of torch for macOS; run the same command without --cuda.")
        return PYTORCH_INDEX + "cu130" if system == "Windows" else None
    if not re.match(r"(https?|file)://", choice):
        raise Trouble(f"COURSE_TORCH_INDEX is {choice!r}; set it to the word pip or to an address (https://...).")
    return choice


def fingerprint(home):
    """Hashes all that decides what gets installed, torch's build aside."""
    files = [home / "requirements.lock", home / "pyproject.toml"]
    return hashlib.sha256(b"\0".join([TORCH.encode(), *(file.read_bytes() for file in files)])).hexdigest()


# ------------------------------------------------------------------------------------------ what is there now


def python_of(venv):
    """Gives the path of an environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def works(venv, need="sys"):
    """Tells whether an environment's Python starts, is new enough and can import the module `need`."""
    code = f"import sys, {need}; sys.exit(sys.version_info < (3, 11))"
    try:
        done = subprocess.run([str(python_of(venv)), "-c", code], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def read_stamp(venv):
    """Reads what an earlier set-up installed; an empty dict when none finished here."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def state_of(venv):
    """Judges .venv: "none", "ready" (a set-up finished in it), "foreign" (usable, not ours) or "broken".

    Raises :class:`Trouble` when what is there is no environment, so that nothing of value is deleted.
    """
    if not venv.exists() or (venv.is_dir() and not any(venv.iterdir())):
        return "none"
    if (venv / UNFINISHED).exists():
        return "broken"
    stamp = read_stamp(venv)
    if stamp:  # the kernel and the scripts of a folder that was moved still name its old place
        return "ready" if stamp.get("home") == str(venv.parent) and works(venv) else "broken"
    if works(venv, need="pip"):
        return "foreign"
    if (venv / "pyvenv.cfg").exists():
        return "broken"
    raise Trouble(f"{venv} is in the way and is no Python environment; move it elsewhere {AGAIN}")


# ------------------------------------------------------------------------------------------- running programs


def say(text=""):
    """Prints at once, so that lines stand in order with those of the programs that are started."""
    print(text, flush=True)


def last_line(text):
    """Gives the last line that a program printed, where most of them say what went wrong."""
    return (text.strip() or "it did not say why").splitlines()[-1].strip()


class Count:
    """A line that counts: rewritten in place on a terminal, printed at every tenth of the way elsewhere."""

    def __init__(self, total, stream=None):
        self.total, self.stream = max(total, 1), stream or sys.stdout
        self.live, self.tenth = self.stream.isatty(), -1

    def show(self, done, what):
        """Shows that `done` of the total are done and what is being worked on."""
        done = min(done, self.total)
        text = f"      {done:4d} of {self.total}  {what}"
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r" + text[:width].ljust(width))
        elif done * 10 // self.total > self.tenth:
            self.tenth = done * 10 // self.total
            self.stream.write(text.rstrip() + "\n")
        self.stream.flush()

    def end(self):
        """Wipes the line on a terminal, and begins to count anew."""
        self.tenth = -1
        if self.live:
            self.stream.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self.stream.flush()


def finish(process):
    """Waits for a program that has got the same Ctrl-C as we have; ends it if it doesn't stop by itself."""
    try:
        process.wait(timeout=10)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def run_quietly(command):
    """Runs a program that has nothing to tell while all is well; returns (exit code, all that it said)."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )
    try:
        said = process.communicate()[0]
    except BaseException:
        finish(process)
        raise
    return process.returncode, said


def pip(venv, *arguments, on_line=None, own_bar=False):
    """Runs pip in the environment, keeps a log, and returns (exit code, all that it said).

    `on_line` is called with each line, and with an empty one twice a second in between. With `own_bar` pip
    draws its own progress bar on the terminal, and only its errors are read.
    """
    command = [str(python_of(venv)), "-m", "pip", *arguments]
    process = subprocess.Popen(
        command,
        stdout=None if own_bar else subprocess.PIPE,
        stderr=subprocess.PIPE if own_bar else subprocess.STDOUT,
        env=dict(os.environ, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONIOENCODING="utf-8"),
        cwd=str(venv.parent),
        encoding="utf-8",
        errors="replace",
    )
    lines, said = queue.Queue(), []

    def read():
        for line in process.stderr if own_bar else process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        with open(venv / LOG, "a", encoding="utf-8") as log:
            log.write("$ " + " ".join(command) + "\n")
            while True:
                try:
                    line = lines.get(timeout=0.5)
                except queue.Empty:
                    line = ""
                if line is None:
                    return process.wait(), "".join(said)
                said.append(line)
                log.write(line)
                if on_line:
                    on_line(line.rstrip())
    except BaseException:
        finish(process)
        raise


def explain(said, what, venv):
    """Turns pip's words about a failure into the one sentence that helps."""
    if NO_SPACE.search(said):
        return (
            f"The disk is full, so {what} could not be installed; make room on the disk of {venv.parent} "
            f"(and in the folder for temporary files) {AGAIN}"
        )
    if PATH_TOO_LONG.search(said):
        return (
            f"{venv.parent} is too deep in the folders for {what}: a path in it grows longer than the system allows; "
            f"move the course to a shorter place, such as a folder of its own in your home, {AGAIN}"
        )
    if IN_USE.search(said):
        return (
            f"Windows keeps files of {venv} from being changed, so {what} could not be installed; close JupyterLab "
            f"and what else uses them {AGAIN}"
        )
    if NO_INDEX.search(said):
        there = ", and COURSE_TORCH_INDEX=pip takes torch from there too" if what == "torch" else ""
        return (
            f"No package index could be reached, so {what} could not be downloaded; check the network "
            f"(a proxy goes into HTTPS_PROXY, a mirror of PyPI into PIP_INDEX_URL{there}) {AGAIN}"
        )
    missing = NO_SUCH_VERSION.search(said)
    if missing:
        return (
            f"pip's package index has no {missing[1]} for Python {platform.python_version()} on "
            f"{platform.system()} {platform.machine()}; unset PIP_INDEX_URL and PIP_NO_INDEX if set, or "
            "delete the folder .venv and run the same command with Python 3.11, 3.12 or 3.13."
        )
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    return (
        f"pip could not install {what} ({last_line(errors[-1] if errors else said)}); look into "
        f"{venv / LOG} for all that it said, mend that {AGAIN}"
    )


# ------------------------------------------------------------------------------------------------- the set-up


def check_machine(home, choice):
    """Raises :class:`Trouble` when nothing could be installed here: no venv, no build of torch, no room."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Trouble(
            "This Python can't make environments; on Debian and Ubuntu add what is missing with: sudo apt "
            f"install python{sys.version_info[0]}.{sys.version_info[1]}-venv (elsewhere with the Python from "
            f"https://www.python.org/) {AGAIN}"
        )
    if sys.maxsize < 2**32:
        raise Trouble("This Python is a 32-bit one and torch needs 64 bits; get one from https://www.python.org/.")
    if platform.system() == "Darwin" and platform.machine() == "x86_64":
        raise Trouble(
            "torch is no longer made for this Intel build of Python on macOS; use the arm64 Python from "
            "python.org on an Apple-silicon Mac, and open the notebooks in Colab on an Intel one."
        )
    macos = platform.mac_ver()[0].split(".")[0] if platform.system() == "Darwin" else ""
    if macos.isdigit() and 11 <= int(macos) < OLDEST_MACOS:  # 10 is what an old build of Python takes any newer one for
        raise Trouble(
            f"torch needs macOS {OLDEST_MACOS} or newer and this is macOS {macos}; update it {AGAIN.rstrip('.')}, or "
            "open the notebooks in Colab."
        )
    need, free = GIGABYTES.get(choice, GIGABYTES["cpu"]), shutil.disk_usage(str(home)).free / 10**9
    if free < need:
        raise Trouble(f"About {need} GB are needed and {free:.1f} GB are free on the disk of {home}; make room {AGAIN}")


def make_environment(venv):
    """Makes an empty environment, marked as unfinished, in place of what may be there."""
    try:
        if venv.exists():
            shutil.rmtree(venv)
        venv.mkdir()
        (venv / UNFINISHED).touch()
    except OSError as error:
        raise Trouble(
            f"{venv} can't be written anew ({error.strerror or error}); close JupyterLab and what else "
            f"uses it, see that the folder is yours {AGAIN}"
        ) from None
    base = getattr(sys, "_base_executable", None) or sys.executable  # not the one in the .venv just removed
    code, said = run_quietly([base, "-m", "venv", str(venv)])
    if code and shutil.disk_usage(str(venv)).free < 10**8:  # venv doesn't say so itself
        raise Trouble(explain("No space left on device", "the environment", venv))
    if code:
        raise Trouble(f"Python could not make {venv} ({last_line(said)}); mend that {AGAIN}")


def install_pins(home, venv):
    """Installs requirements.lock, counting packages. The lock is complete, so nothing is resolved."""
    lock = home / "requirements.lock"
    pins = [line for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#"]
    count = Count(len(pins))
    folders = list(venv.glob("Lib/site-packages" if os.name == "nt" else "lib/*/site-packages"))
    seen, there = 0, None

    def installed():
        return sum(name.endswith(".dist-info") for folder in folders for name in os.listdir(folder))

    def on_line(line):
        nonlocal seen, there
        named = re.match(r"(?:Collecting|Processing|Requirement already satisfied:|Ignoring) (\S+).*", line)
        loading = re.match(r"\s+Downloading (\w+)-\S+ ?(\(.*\))?", line)
        if named and ("(from -r" in line or line.startswith("Ignoring")):
            seen += 1
            count.show(seen, re.split(r"[-=]+\d|:", named[1].rsplit("/", 1)[-1])[0])
        elif loading:
            count.show(seen, f"{loading[1]} {loading[2] or ''}")
        elif "Retrying (" in line:
            count.show(seen, "no answer from the package index, trying again")
        elif line.startswith("Installing collected packages"):
            count.end()
            there = installed()
        elif there is not None:
            count.show(installed() - there, "unpacked")

    code, said = pip(venv, "install", "--no-deps", "-r", str(lock), on_line=on_line)
    count.end()
    if code:
        raise Trouble(explain(said, "the course's packages", venv))


def install_torch(venv, index, replace):
    """Installs torch from `index` (None: pip's own choice); `replace` takes another build out first."""

    def on_line(line):
        if "Retrying (" in line:
            say("      no answer from the package index, trying again")

    if replace:
        pip(venv, "uninstall", "-y", "torch")
    source = ["--index-url", index] if index else []
    code, said = pip(venv, "install", TORCH, *source, on_line=on_line, own_bar=True)
    if code:
        raise Trouble(explain(said, "torch", venv))


def install_course(home, venv):
    """Installs the repository itself, editable. Its kernel is the environment's own, python3."""
    code, said = pip(venv, "install", "--no-deps", "--no-build-isolation", "-e", str(home))
    if code:
        raise Trouble(explain(said, "the course itself", venv))
    settings = venv / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    if not settings.exists():  # a fresh JupyterLab would ask about news before anything else
        quiet = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps(quiet, indent=2) + "\n", encoding="utf-8")


def try_torch(venv):
    """Imports torch once and says what it is, for example "2.13.0+cpu without a GPU"."""
    code = "import torch as t; print(t.__version__, 'with' if t.cuda.is_available() else 'without', 'a GPU')"
    failed, said = run_quietly([str(python_of(venv)), "-W", "ignore", "-c", code])
    if failed:
        mend = "install Microsoft's Visual C++ Redistributable" if os.name == "nt" else "delete the folder .venv"
        raise Trouble(f"torch is installed but can't be imported ({last_line(said)}); {mend} {AGAIN}")
    return last_line(said)


def set_up(home, option, environment):
    """Brings .venv to what the lock, pyproject.toml and the wanted torch ask for; returns its Python's path.

    Does nothing when all is there. An environment that a set-up left unfinished, whose Python is gone or that
    was moved with its folder is made anew; one that somebody else made is used.
    """
    venv = home / ".venv"
    state, stamp = state_of(venv), read_stamp(venv)
    choice = torch_choice(option, environment, stamp.get("torch") if state == "ready" else None)
    index = torch_index(choice, platform.system())
    want = {"home": str(home), "torch": choice, "fingerprint": fingerprint(home)}
    if state == "ready" and stamp == want:
        say(f"The course is set up in {venv}; nothing to install.")
        return python_of(venv)
    started = time.time()
    if state == "broken":
        say(f"{venv} is unfinished, broken or was moved here: making it anew.")
    if state in ("none", "broken"):
        check_machine(home, choice)
        say(f"Setting up the course in {venv}. This is done once and takes some minutes.")
        say("[1/4] a Python environment")
        make_environment(venv)
    else:
        say(f"Bringing {venv} up to date.")
        (venv / UNFINISHED).touch()
        (venv / STAMP).unlink(missing_ok=True)
    say("[2/4] the packages in requirements.lock")
    install_pins(home, venv)
    say(f"[3/4] {TORCH}, from {index or 'the index that pip is set to'}")
    install_torch(venv, index, replace=state == "ready" and stamp.get("torch") != choice)
    say("[4/4] the course itself and its kernel")
    install_course(home, venv)
    found = try_torch(venv)
    temporary = venv / (STAMP + ".new")
    temporary.write_text(json.dumps(want, indent=2) + "\n", encoding="utf-8")
    temporary.replace(venv / STAMP)
    (venv / UNFINISHED).unlink()
    say(f"Set up in {time.time() - started:.0f} s: torch {found}.")
    if choice == "cuda" and "without" in found:
        say("This CUDA build of torch finds no GPU that it can use; the course runs on the CPU all the same.")
    return python_of(venv)


# ----------------------------------------------------------------------------------------------- the commands


def open_lab(home, python, options):
    """Opens JupyterLab at the first notebook; on POSIX this process becomes it."""
    command = [str(python), "-m", "jupyterlab", f"--ServerApp.root_dir={home}", *options]
    if (home / FIRST_NOTEBOOK).exists():
        command.append(FIRST_NOTEBOOK)
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in options:
        command.append("--allow-root")  # as in containers; it listens on this machine only and asks for a token
    say("Opening JupyterLab. Leave this window open while you work; Ctrl-C in it ends JupyterLab.")
    os.chdir(str(home))
    os.environ.update(UTF8, JUPYTER_PREFER_ENV_PATH="1")  # .venv's kernel python3 before one of the user's
    if os.name == "posix":
        os.execv(command[0], command)
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # JupyterLab got it too, and asks whether it is meant
            continue


def stages():
    """Lists what `test` runs: a name, pytest's arguments. A notebook stays on one worker; tests go to who is free."""
    workers = ["-n", "2", "--dist"]
    return [
        ("tests", [*workers, "worksteal", "tests"]),
        ("notebooks", ["-p", "tools.pytest_notebooks", *workers, "loadfile", "--no-loadscope-reorder", "solutions"]),
    ]


def environment_of_tests(environment):
    """Gives the variables for tests: CPU, offline, UTF-8, one thread a worker, no COURSE_ setting, no record."""
    kept = {name: value for name, value in environment.items() if not name.startswith("COURSE_")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    fixed = {"CUDA_VISIBLE_DEVICES": "-1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **threads, **fixed, **UTF8, "COURSE_PROGRESS": "off"}


def run_tests(home, python, set_up_seconds):
    """Runs every stage, also after one has failed; prints the times; returns 0 if all passed, else 1."""
    rows, failed = [("set-up", set_up_seconds, "done")], False
    for name, arguments in stages():
        say(f"\n{name}: pytest {' '.join(arguments)}")
        started = time.time()
        command = [str(python), "-m", "pytest", *arguments]
        process = subprocess.Popen(command, cwd=str(home), env=environment_of_tests(os.environ))
        try:
            code = process.wait()
        except BaseException:
            finish(process)
            raise
        verdict = {0: "passed", 5: "FAILED: found nothing to run"}.get(code, f"FAILED (pytest's exit code {code})")
        rows.append((name, time.time() - started, verdict))
        failed = failed or code != 0
    say()
    for name, seconds, verdict in rows:
        say(f"{name:<10} {seconds:7.1f} s   {verdict}")
    return int(failed)


def show_progress(home, words):
    """Prints what was passed, of the course or of one chapter, or forgets it; needs no set-up."""
    sys.path.insert(0, str(HOME))
    from utils.course.progress_page import Refused, answer  # they need the standard library only

    try:
        say(answer(home, words))
    except Refused as refused:
        raise Trouble(str(refused)) from None
    return 0


def main(arguments=None, home=HOME):
    """Does what the command line says and returns the exit code; trouble is told in one sentence."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "-h" in arguments or "--help" in arguments:
        say(__doc__.strip())
        return 0
    started = time.time()
    try:
        command, option, options = parse(arguments)
        if command == "progress":
            return show_progress(home, options)
        python = set_up(home, option, os.environ)
        if command == "setup":
            return 0
        if command == "test":
            return run_tests(home, python, time.time() - started)
        return open_lab(home, python, options)
    except Trouble as trouble:
        say(f"\n{trouble}")
    except OSError as error:
        at = f" at {error.filename}" if error.filename else ""
        say(f"\nThe operating system refused{at} ({error.strerror or error}); mend that {AGAIN}")
    except KeyboardInterrupt:
        say("\nStopped. The same command takes it up again.")
        return 130
    return 1


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a folder's name may hold letters that a log's encoding doesn't have
        stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
