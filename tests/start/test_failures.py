"""What pip says when it fails, as one sentence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from utils.start.failures import explain

POSIX = os.name == "posix"


def one_sentence(said: str) -> str:
    """The last paragraph of an output, which must be a single line without a traceback."""
    assert "Traceback" not in said
    return said.strip().rsplit("\n", 1)[-1]


REFUSED = (
    "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError('<X>: "
    "Failed to establish a new connection: [Errno 111] Connection refused')': /simple/six/\n"
    "ERROR: Could not find a version that satisfies the requirement six==1.16.0 (from versions: none)\n"
    "ERROR: No matching distribution found for six==1.16.0\n"
)
NO_NAME = REFUSED.replace("[Errno 111] Connection refused", "[Errno -3] Temporary failure in name resolution")
TIMEOUT = "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='x'): Read timed out.\n"
FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
LONG = (
    "ERROR: Could not install packages due to an OSError: [Errno 2] No such file or directory: 'C:\\\\a\\\\b.js'\n"
    "HINT: This error might have occurred since this system does not have Windows Long Path support enabled.\n"
)
LOCKED = "ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'C:\\\\a\\\\_C.pyd'\n"
NO_WHEEL = REFUSED.split("\n", 1)[1]
INVALID = "Processing ./six.whl\nERROR: Wheel 'six' located at six.whl is invalid.\n"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (REFUSED, "No package index could be reached, so torch could not be downloaded"),
        (NO_NAME, "No package index could be reached"),
        (TIMEOUT, "No package index could be reached"),
        (FULL, "The disk is full, so torch could not be installed"),
        (FULL + REFUSED, "The disk is full"),
        (LONG, "{home} is too deep in the folders for torch"),
        (LOCKED, "Windows keeps files of {home}"),
        (NO_WHEEL, "pip's package index has no six==1.16.0 for Python"),
        (INVALID, "pip could not install torch (ERROR: Wheel 'six' located at six.whl is invalid.)"),
        ("", "pip could not install torch (it did not say why)"),
    ],
)
def test_pips_words_become_one_sentence(home, said, words):
    message = explain(said, "torch", home / ".venv")
    assert message.startswith(words.replace("{home}", str(home)))
    assert "\n" not in message and message.endswith(".") and "run the same command" in message


def real_environment(index: str) -> dict[str, str]:
    """An environment in which pip finds packages at one address and nowhere else."""
    names = {name for name in os.environ if name.startswith(("PIP_", "COURSE_"))}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {
        **kept,
        "PIP_INDEX_URL": index,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "1",
        "PIP_FIND_LINKS": "",
    }


def test_no_package_index_for_real(whole):
    with socket.socket() as closed:  # bound and not listening: nobody else gets the port, and it refuses
        closed.bind(("127.0.0.1", 0))
        index = f"https://127.0.0.1:{closed.getsockname()[1]}/simple"
        done = subprocess.run(
            [sys.executable, "start.py", "setup"],
            cwd=whole,
            env=real_environment(index),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1 and done.stderr == ""
    assert one_sentence(done.stdout).startswith("No package index could be reached, so the course's packages")
    assert "Retrying" in (whole / ".venv" / "lora-course.log").read_text()


@pytest.mark.skipif(not POSIX, reason="sends Ctrl-C as POSIX does")
def test_ctrl_c_for_real(whole):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        process = subprocess.Popen(
            [sys.executable, "start.py", "setup"],
            cwd=whole,
            env=real_environment(index),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own, as a terminal gives
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.default_int_handler
            ),  # a job in the background has none
        )
        silent.settimeout(120)
        silent.accept()[0].close()  # pip is asking: the set-up is in its second step
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, out + errors
    assert one_sentence(out).startswith("Stopped.") and "Traceback" not in errors
    assert (whole / ".venv" / "lora-course.unfinished").exists()
