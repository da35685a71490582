"""tools/drift.py: what it asks uv for, what it installs, and how it counts, records and prints."""

import json
import subprocess
import sys
import tomllib

import pytest

from tools import drift, lock

PYPROJECT = tomllib.loads((drift.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = ["numpy==2.0.0", "nvidia-cublas-cu12==12.6.4.1", "torch==2.7.0", "torchvision==9", "triton==3.3.0"]


def run(**changes):
    """A record of one run, as drift.main writes it."""
    versions = dict.fromkeys(drift.declared(PYPROJECT), "1.0") | {"torch": "2.7.0+cpu"}
    made = {"tool": "python -m tools.drift newest", "seeds": []}
    counted = made | {"passed": 4190, "failed": 0, "skipped": 2, "seconds": 600, "date": "2026-11-07"}
    return counted | {"python": "3.11.7", "machine": "Linux x86_64", "versions": versions} | changes


def test_the_declared_packages_are_those_that_run_the_course_by_their_normalized_names():
    dependencies = ["Foo_Bar>=1,<2", "torch>=2.7 ; python_version >= '3.11'"]
    project = {"dependencies": dependencies, "optional-dependencies": {"lab": ["jupyterlab"]}}
    assert drift.declared({"project": project}) == ["foo-bar", "torch"]


def test_torch_is_found_among_the_pins_and_its_like_are_not_mistaken_for_it():
    assert drift.pinned_torch(PINS) == "2.7.0"
    assert drift.pinned_torch(["torch==2.7.0+cpu ; sys_platform == 'linux'"]) == "2.7.0+cpu"
    with pytest.raises(ValueError, match="resolved no torch"):
        drift.pinned_torch([pin for pin in PINS if not pin.startswith("torch==")])


def test_torch_takes_part_in_resolving_at_a_pin_or_within_its_range():
    project = {
        "dependencies": ["torch>=2.7,<3"],
        "optional-dependencies": {"lab": ["a>=1"], "dev": ["b"], "small": ["c"]},
    }
    pyproject = {"project": project, "build-system": {"requires": ["setuptools>=77"]}}
    assert lock.requirements(pyproject) == ["torch>=2.7,<3", "a>=1", "b", "setuptools>=77"]
    assert lock.requirements(pyproject, "2.13.0") == [*lock.requirements(pyproject), "torch==2.13.0"]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Stands in for pip and the making of environments: what would have been done, in order."""
    done = []

    def pip(folder, *arguments, **options):
        pins = [open(arguments[-1], encoding="utf-8").read().split()] if "-r" in arguments else []
        done.append(("pip", folder.name, *(a for a in arguments if not a.endswith("pins.txt")), *pins))
        return 0, ""

    monkeypatch.setattr(drift, "pip", pip)
    monkeypatch.setattr(drift, "make_environment", lambda folder: done.append(("make", folder.name)))
    monkeypatch.setattr(drift, "install_course", lambda home, folder: done.append(("course", home, folder.name)))
    monkeypatch.setattr(drift.platform, "system", lambda: "Linux")
    return done


def test_an_environment_gets_torch_first_then_the_other_pins_then_the_course(calls, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_TORCH_INDEX", "https://example.org/cpu")
    python = drift.make(tmp_path / ".venv-oldest", PINS, "2.7.0")
    assert python == drift.python_of(tmp_path / ".venv-oldest")
    assert calls == [
        ("make", ".venv-oldest"),
        ("pip", ".venv-oldest", "install", "torch==2.7.0", "--index-url", "https://example.org/cpu"),
        ("pip", ".venv-oldest", "install", "--no-deps", "-r", ["numpy==2.0.0", "torchvision==9"]),
        ("course", drift.ROOT, ".venv-oldest"),
    ]


def test_what_pip_cannot_install_is_told_in_a_sentence_and_ends_it(calls, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_TORCH_INDEX", "pip")
    said = "ERROR: No matching distribution found for torch==2.7.0"
    monkeypatch.setattr(drift, "pip", lambda *arguments, **options: (1, said))
    with pytest.raises(drift.Trouble, match="has no torch==2.7.0 for Python"):
        drift.make(tmp_path / "env", PINS, "2.7.0")


SUITE = """\
import pytest

@pytest.mark.locked
def test_of_the_lock():
    assert False

def test_right():
    pass

def test_wrong():
    assert False

def test_skipped():
    pytest.skip("why")

@pytest.fixture
def broken():
    raise ValueError

def test_error(broken):
    pass
"""


def test_the_counts_are_pytests_and_tests_of_the_lock_are_left_out(monkeypatch, tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = locked\naddopts = --strict-markers\n")
    monkeypatch.setattr(drift, "ROOT", tmp_path)
    monkeypatch.setattr(drift, "stages", lambda: [("tests", ["tests"]), ("notebooks", ["solutions"])])
    code, found = drift.run_tests(sys.executable, workers=1)
    assert code == 1
    assert found == drift.Counts(passed=1, failed=2, skipped=1)


def test_what_it_runs_is_there_and_a_pytest_that_refuses_to_start_has_no_counts(monkeypatch):
    assert [name for name, _ in drift.stages()].count("tests") == 1
    monkeypatch.setattr(drift, "stages", lambda: [("tests", ["--no-such-option"])])
    assert drift.run_tests(sys.executable, workers=1) == (4, drift.Counts(0, 0, 0))


def test_the_versions_are_asked_of_the_other_python():
    assert drift.installed(sys.executable, ["packaging"]) == {"packaging": __import__("packaging").__version__}
    with pytest.raises(subprocess.CalledProcessError):
        drift.installed(sys.executable, ["no-such-package"])


def test_a_date_is_written_as_prose_does():
    assert drift.day("2026-11-07") == "7 November 2026"


def test_the_table_shows_what_was_run_and_what_failed():
    oldest = run(failed=3)
    lines = drift.table({"newest": run(date="2026-12-01"), "oldest": oldest}).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| oldest | 2.7.0+cpu | 1.0 |") and lines[2].endswith("| 4,190 | 3 | 7 November 2026 |")
    assert lines[3].startswith("| newest | ") and lines[3].endswith("| 0 | 1 December 2026 |")
    assert drift.table({"oldest": oldest}).splitlines() == lines[:3]


@pytest.mark.parametrize(
    ("kind", "torch", "resolution", "pin"),
    [("oldest", None, "lowest-direct", "2.7.0"), ("newest", "2.13.0", "highest", "2.13.0")],
)
def test_a_run_is_recorded_beside_the_other_and_pytests_code_is_the_tools(
    kind, torch, resolution, pin, monkeypatch, tmp_path, capsys
):
    asked = {}

    def resolve(wanted, how):
        asked.update(wanted=wanted, how=how)
        return [line for line in PINS if not line.startswith("torch==")] + [f"torch=={pin}"]

    def make(folder, pins, version):
        asked.update(folder=folder, torch=version)
        return "python"

    record = tmp_path / "drift.json"
    (other,) = set(drift.RESOLUTIONS) - {kind}
    record.write_text(json.dumps({other: run(), kind: run(passed=1)}))
    (tmp_path / "pyproject.toml").write_bytes((drift.ROOT / "pyproject.toml").read_bytes())
    monkeypatch.setattr(drift, "ROOT", tmp_path)
    monkeypatch.setattr(drift, "RECORD", record)
    monkeypatch.setattr(drift, "resolve", resolve)
    monkeypatch.setattr(drift, "make", make)
    monkeypatch.setattr(drift, "run_tests", lambda python, workers: (1, drift.Counts(7, workers, 1)))
    monkeypatch.setattr(drift, "installed", lambda python, names: dict.fromkeys(names, "1.0"))
    monkeypatch.setattr(sys, "argv", ["drift", kind, "--workers", "3", *(["--torch", torch] if torch else [])])
    assert drift.main() == 1
    assert asked["wanted"] == lock.requirements(PYPROJECT, torch)
    assert asked["how"][:2] == ("--resolution", resolution)
    assert asked["folder"] == tmp_path / f".venv-{kind}" and asked["torch"] == pin
    written = json.loads(record.read_text())
    assert written[other] == run()
    assert (written[kind]["passed"], written[kind]["failed"], written[kind]["skipped"]) == (7, 3, 1)
    assert set(written[kind]) == set(run()) and drift.table(written) in capsys.readouterr().out


@pytest.mark.parametrize("code", [2, 4])
def test_a_run_that_was_cut_off_is_not_recorded(code, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(drift, "RECORD", tmp_path / "drift.json")
    monkeypatch.setattr(drift, "resolve", lambda wanted, how: PINS)
    monkeypatch.setattr(drift, "make", lambda folder, pins, version: "python")
    monkeypatch.setattr(drift, "run_tests", lambda python, workers: (code, drift.Counts(2321, 0, 0)))
    monkeypatch.setattr(sys, "argv", ["drift", "newest"])
    assert drift.main() == code and not drift.RECORD.exists()
    assert f"nothing is recorded: pytest ended with the exit code {code}" in capsys.readouterr().out


def test_when_nothing_fits_nothing_is_made_or_recorded(monkeypatch, tmp_path):
    def resolve(wanted, how):
        raise subprocess.CalledProcessError(1, "uv")

    monkeypatch.setattr(drift, "resolve", resolve)
    monkeypatch.setattr(drift, "make", None)
    monkeypatch.setattr(drift, "RECORD", tmp_path / "drift.json")
    monkeypatch.setattr(sys, "argv", ["drift", "oldest"])
    assert drift.main() == 1 and not list(tmp_path.iterdir())
