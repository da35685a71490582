"""JupyterLab is started once for a folder, its address is told, and its log is kept."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from utils.start import commands, lab, servers
from utils.start.servers import Server
from utils.start.venv import python_of

POSIX = os.name == "posix"

# Stands in for JupyterLab: says what it was given, then does what a server does, or fails.
PRETENDER = """
import http.server, json, os, pathlib, sys
print("given:", json.dumps(sys.argv[1:]), os.environ["PYTHONUTF8"], os.getcwd(), flush=True)
if "--fail" in sys.argv:
    print("\\n".join(f"line {n}" for n in range(20)))
    sys.exit("OSError: no such port")
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path.endswith("token=secret") else 403)
        self.end_headers()
    def log_message(self, *words): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
port = server.server_address[1]
told = {"url": f"http://localhost:{port}/", "base_url": "/", "port": port, "token": "secret", "hostname": "localhost"}
told["root_dir"] = next(word.split("=", 1)[1] for word in sys.argv if "root_dir" in word)
pathlib.Path(os.environ["RUNTIME"], f"jpserver-{os.getpid()}.json").write_text(json.dumps(told))
server.timeout = 0.2
for _ in range(6):
    server.handle_request()
"""


@pytest.fixture
def pretender(home, monkeypatch, tmp_path):
    """A folder for servers' files, and a JupyterLab that is none."""
    (home / "work").mkdir()
    (home / "work/00_start_here.ipynb").write_text("{}")
    (home / ".venv").mkdir()
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    (tmp_path / "pretender.py").write_text(PRETENDER)
    really = subprocess.Popen
    monkeypatch.setenv("RUNTIME", str(runtime))
    for name in ("SSH_CONNECTION", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(lab, "runtime_folder", lambda python: runtime)
    monkeypatch.setattr(lab, "place", lambda environment: "here")
    monkeypatch.setattr(lab.webbrowser, "open", lambda address: pytest.fail("a browser was opened"))
    monkeypatch.setattr(lab.signal, "signal", lambda *arguments: None)

    def popen(command, **options):
        assert command[1:3] == ["-m", "jupyterlab"]
        return really([sys.executable, str(tmp_path / "pretender.py"), *command[3:]], **options)

    monkeypatch.setattr(lab.subprocess, "Popen", popen)
    return runtime


def log_of(home: Path) -> tuple[list[str], list[str]]:
    """What the pretender was given, and the words after it: UTF-8 mode and its folder."""
    given = next(line for line in (home / lab.LOG).read_text().splitlines() if line.startswith("given:"))
    words, _, rest = given.removeprefix("given: ").rpartition("] ")
    return json.loads(words + "]"), rest.split(" ", 1)


def test_the_address_opens_the_first_notebook_and_the_log_is_in_a_file(home, pretender, capsys):
    assert lab.open_lab(home, Path("python"), ["--port=9000"]) == 0
    out = capsys.readouterr().out
    assert "/lab/tree/work/00_start_here.ipynb?token=secret\n" in out and "given:" not in out
    assert "Its log is .venv/jupyterlab.log" in out and "taken" not in out
    given, (utf8, where) = log_of(home)
    assert f"--ServerApp.root_dir={home}" in given and "--port=9000" in given and "--no-browser" not in given
    assert given[-1] == "--allow-root" if POSIX and os.geteuid() == 0 else given[-1] == lab.FIRST_NOTEBOOK
    assert utf8 == "1" and Path(where) == home


def test_jupyterlab_has_the_courses_settings_it_asks_for_no_news_and_wraps_code(home, pretender):
    lab.open_lab(home, Path("python"), [])
    assert f"--LabApp.app_settings_dir={home / lab.SETTINGS}" in log_of(home)[0]
    file = Path(__file__).resolve().parents[2] / lab.SETTINGS / "overrides.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    assert settings["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"
    assert settings["@jupyterlab/notebook-extension:tracker"]["codeCellConfig"]["lineWrap"] is True


@pytest.mark.parametrize(("user", "given", "count"), [(0, [], 1), (0, ["--allow-root"], 1), (1000, [], 0)])
def test_root_is_allowed_to(home, pretender, monkeypatch, user, given, count):
    monkeypatch.setattr(lab.os, "geteuid", lambda: user, raising=False)
    lab.open_lab(home, Path("python"), [*given, "--fail"])
    assert log_of(home)[0].count("--allow-root") == count


def test_the_last_lines_of_the_log_are_shown_when_it_fails(home, pretender, capsys):
    assert lab.open_lab(home, Path("python"), ["--fail"]) == 1
    out = capsys.readouterr().out
    assert f"JupyterLab ended with exit code 1. The last lines of {home / lab.LOG}:" in out
    assert out.strip().endswith("OSError: no such port") and "line 19" in out and "line 3\n" not in out


def test_over_ssh_no_browser_is_opened_there(home, pretender, capsys, monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 50000 192.168.1.7 22")
    monkeypatch.setattr(lab, "place", lambda environment: "ssh")
    assert lab.open_lab(home, Path("python"), []) == 0
    assert "--no-browser" in log_of(home)[0] and "ssh -N -L " in capsys.readouterr().out


@pytest.fixture
def running(tmp_path, pretender):
    """Makes the file of a server that runs, for a folder; the server answers to its token only."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/status?token=secret" else 403)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    port = server.server_address[1]

    def make(root, token="secret"):
        told = {"url": f"http://box:{port}/", "base_url": "/", "port": port, "token": token, "hostname": "0.0.0.0"}
        (pretender / "jpserver-1.json").write_text(json.dumps(told | {"root_dir": str(root)}))
        return port

    yield make
    server.shutdown()
    server.server_close()


def test_a_second_start_shows_the_first(home, pretender, running, capsys, monkeypatch):
    port, opened = running(home), []
    monkeypatch.setattr(lab.webbrowser, "open", opened.append)
    assert lab.open_lab(home, Path("python"), ["--no-browser"]) == 0 and opened == []
    assert lab.open_lab(home, Path("python"), []) == 0
    assert opened == [f"http://localhost:{port}/lab/tree/work/00_start_here.ipynb?token=secret"]
    assert opened[0] in capsys.readouterr().out and not (home / lab.LOG).exists()


def test_another_course_on_the_port_is_named(home, pretender, running, capsys):
    port = running(home.parent / "other")
    assert lab.open_lab(home, Path("python"), [f"--port={port}"]) == 0
    said = (
        f"Port {port} is taken by JupyterLab at http://localhost:{port}/ for {home.parent / 'other'}; this course is at"
    )
    assert said in capsys.readouterr().out


def test_a_file_that_a_killed_server_left_counts_for_nothing(home, pretender, running):
    running(home, token="another's")
    assert servers.running(pretender) == {}
    for text in ("", "{}", "[]"):
        (pretender / "jpserver-1.json").write_text(text)
        assert servers.running(pretender) == {}
    running(home)
    assert [server.root for server in servers.running(pretender).values()] == [home]


def test_what_is_told_depends_on_where_the_reader_sits():
    server = Server("http://localhost:8889/", 8889, Path("/course"), "")
    environment = {"USER": "ada", "SSH_CONNECTION": "10.0.0.9 50000 192.168.1.7 22"}

    def told(where):
        return lab.told(server, [], ["--port", "8889"], where, environment)

    assert "    ssh -N -L 8889:localhost:8889 ada@192.168.1.7\n" in told("ssh")
    assert "Windows" in told("wsl") and "-p 8889:8889" in told("container") and "--ip=0.0.0.0" in told("container")
    assert told("here").splitlines()[2] == "    http://localhost:8889/lab/tree/work/00_start_here.ipynb"
    assert "ssh" not in told("here") and "container" not in told("here") and "taken" not in told("here")


def test_a_port_that_some_program_has_is_told(home, running):
    server, port = Server("http://localhost:1/", 1, home, ""), running(home)
    assert f"Port {port} is taken by another program; this course is at port 1." in lab.told(
        server, [], [f"--ServerApp.port={port}"], "here", {}
    )


def test_the_place_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(lab.platform, "release", lambda: "6.8.0-generic")
    assert lab.place({}, tmp_path) == "here"
    assert lab.place({"SSH_CONNECTION": "a 1 b 22"}, tmp_path) == "ssh"
    assert lab.place({"SSH_CONNECTION": "a 1 b 22", "DISPLAY": "localhost:10.0"}, tmp_path) == "here"
    (tmp_path / ".dockerenv").touch()
    assert lab.place({}, tmp_path) == "container"
    monkeypatch.setattr(lab.platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    assert lab.place({}, tmp_path) == "wsl"


def test_the_runtime_folder_is_the_environments_own(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "here"))
    assert servers.runtime_folder(Path(sys.executable)) == tmp_path / "here"


def test_the_command_line_reaches_it(start, pip, home, monkeypatch):
    got = []
    monkeypatch.setattr(commands, "open_lab", lambda home, python, options: got.append((python, options)) or 0)
    assert start("--no-browser", "--cpu", "--port", "9000", "--", "--debug") == 0
    assert got == [(python_of(home / ".venv"), ("--no-browser", "--port", "9000", "--debug"))]
