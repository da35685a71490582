"""What GitHub and its visitors read, from workflows to the dev container: each fact agrees with where it comes from."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from utils.course.colab import origin
from utils.start.command_line import Line, parse
from utils.start.failures import LOG
from utils.start.lab import FIRST_NOTEBOOK
from utils.start.set_up import fingerprint
from utils.start.torch_build import GIGABYTES

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
ADDRESS = PROJECT["urls"]["Repository"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PAGES = [ROOT / name for name in ("CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CITATION.cff")]

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
each_form = pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)


def parsed(path: Path) -> dict:
    """A YAML file as GitHub reads it: `on` is a word there, and YAML 1.1's true to this parser."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}


def rows_of(job: dict) -> list[dict[str, str]]:
    """A job's matrix, multiplied out as GitHub does it: an `include` joins rows that it doesn't change, or is one."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    more = matrix.pop("include", [])
    base = [dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())] if matrix else []
    rows = [dict(row) for row in base]
    for extra in more:
        joined = [i for i, row in enumerate(base) if all(row.get(key, value) == value for key, value in extra.items())]
        for i in joined:
            rows[i] |= extra
        if not joined:
            rows.append(dict(extra))
    return rows or [{}]


def commands() -> list[tuple[str, str, str, str]]:
    """Every command that a workflow runs, with its matrix filled in: (workflow, system, Python, command)."""
    found = []
    for path in WORKFLOWS:
        for job in parsed(path)["jobs"].values():
            for row in rows_of(job):

                def filled(text: str, row: dict[str, str] = row) -> str:
                    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda hole: row[hole[1]], text)

                (python,) = [
                    step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})
                ]
                for step in job["steps"]:
                    if "run" in step:
                        found.append((path.stem, filled(job["runs-on"]), filled(python), filled(step["run"])))
    return found


def known_pythons() -> list[str]:
    """The versions that pyproject.toml admits, oldest first."""
    oldest, end = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    return [f"3.{minor}" for minor in range(int(oldest), int(end))]


def tracked() -> list[Path]:
    """The files that git knows. Skips the test where there is no git or no checkout, as in a downloaded archive."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_symbolic_link_is_in_the_repository():
    """One to a machine's own folder leads nowhere in a clone, and Windows makes a text file of any."""
    tracked()
    done = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("120000")] == []


# -------------------------------------------------------------------------------- workflows


def test_each_command_of_a_workflow_is_one_that_a_person_has():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    ran = {command for *_, command in commands()}
    assert ran
    for command in ran:
        word, *rest = command.split()
        if word == "make":
            assert len(rest) == 1 and rest[0] in targets, f"`{command}`: the Makefile has no such target"
        else:
            assert rest[:1] == ["start.py"] and word == "python", f"`{command}` is neither make nor start.py"
            assert parse(rest[1:]).command in ("test", "setup"), f"`{command}` would open JupyterLab"


def test_the_readmes_test_command_runs_on_three_systems_and_make_on_none_that_may_lack_it():
    assert "`python3 start.py test`" in README
    locked = [(system, python) for name, system, python, command in commands() if command == "python start.py test"]
    assert {system for system, _ in locked} == {"ubuntu-latest", "macos-latest", "windows-latest"}
    assert [command for _, system, _, command in commands() if "windows" in system and command.startswith("make")] == []


def test_the_sets_are_run_when_they_should_be():
    on = {path.stem: parsed(path)["on"] for path in WORKFLOWS}
    assert {name: sorted(events) for name, events in on.items()} == {
        "tests": ["pull_request", "push", "workflow_dispatch"],
        "weekly": ["schedule", "workflow_dispatch"],
        "nightly": ["schedule", "workflow_dispatch"],
        "site": ["push", "workflow_dispatch"],
    }
    crons = {name: events["schedule"][0]["cron"].split() for name, events in on.items() if "schedule" in events}
    assert crons["weekly"][2:] == ["*", "*", "1"] and crons["nightly"][2:] == ["*", "*", "*"]
    assert on["tests"]["push"] is on["site"]["push"] is None, "names no branch: a fork may call its own as it likes"
    ran = {name: {command for workflow, *_, command in commands() if workflow == name} for name in on}
    assert ran["weekly"] == {"make drift-oldest", "make drift-newest"} and ran["nightly"] == {"make nightly"}
    assert ran["site"] == {"make site-ref", "make site"}


def test_the_workflows_run_every_python_that_the_course_admits():
    known = known_pythons()
    ran = commands()
    assert sorted({python for name, *_, python, _ in ran if name == "tests"}) == sorted(known)
    assert {python for *_, python, command in ran if command == "make drift-oldest"} == {known[0]}
    assert {python for *_, python, command in ran if command == "make drift-newest"} == {known[-1]}
    assert all(python in SpecifierSet(PROJECT["requires-python"]) and python in known for *_, python, _ in ran)


@each_workflow
def test_a_workflow_can_read_the_repository_and_nothing_else(path):
    workflow = parsed(path)
    publishes = {"pages": "write", "id-token": "write"} if path.stem == "site" else {}
    assert workflow["permissions"] == {"contents": "read"} | publishes
    assert "secrets." not in path.read_text(encoding="utf-8")
    assert workflow["concurrency"]["cancel-in-progress"] is True and "github.ref" in workflow["concurrency"]["group"]
    for job in workflow["jobs"].values():
        assert "permissions" not in job and 10 <= job["timeout-minutes"] <= 180
        for action in [step["uses"] for step in job["steps"] if "uses" in step]:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", action), (
                f"{action} is not GitHub's own, pinned to a major version"
            )


def test_the_site_is_published_from_the_one_ref_alone():
    """Each step after the first command asks what it said; tests/site/test_environment.py holds that command."""
    (job,) = parsed(ROOT / ".github" / "workflows" / "site.yml")["jobs"].values()
    steps = [step.get("run") or step["uses"] for step in job["steps"]]
    asked = job["steps"][steps.index("make site-ref")]
    assert asked["id"] == "ref" and "if" not in asked
    after = job["steps"][steps.index("make site-ref") + 1 :]
    assert [step["if"] for step in after] == ["steps.ref.outputs.publish == 'true'"] * len(after)
    assert after[-1]["uses"].startswith("actions/deploy-pages@") and "make site" in steps


def test_a_cached_environment_is_keyed_by_what_start_py_compares():
    (key,) = re.findall(
        r"^ +key: (.*)$", WORKFLOWS[[path.stem for path in WORKFLOWS].index("tests")].read_text(), re.MULTILINE
    )
    hashed = set(re.findall(r"'([^']+)'", re.search(r"hashFiles\((.*?)\)", key)[1]))
    compared = set(re.findall(r'home / "(.*?)"', inspect.getsource(fingerprint)))
    assert hashed == compared | {"utils/start/torch_build.py"} and len(compared) == 2  # that one names torch's version
    assert "runner.os" in key and "runner.arch" in key and "outputs.python-version" in key


# -------------------------------------------------------------------------------- one ref


def test_no_file_but_pyproject_names_the_branch_that_links_go_to():
    repository, ref = origin(ROOT)
    name = repository.split("/")[1]
    link = re.compile(
        re.escape(name) + r"/(?:blob|tree|raw|edit)/[^\s)\"'>\]]+"
        r"|colab\.research\.google\.com/github/\w[^\s)\"'>\]\\]*"
    )
    for path in tracked():
        if path.suffix in (".png", ".webp", ".safetensors") or path == Path(__file__):
            continue
        found = link.findall(path.read_text(encoding="utf-8"))
        if path.parent.name in ("notebooks", "solutions") or path == ROOT / "README.md":
            assert found and [one for one in found if f"{name}/blob/{ref}/" not in one] == [], path.name
        elif path.relative_to(ROOT).parts[0] != "tests":  # tests make addresses up
            assert found == [], f"{path.name} names a ref in {found}; read it with utils.course.colab.origin"


# -------------------------------------------------------------------------------- pre-commit


PRE_COMMIT = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
HOOKS = {hook["id"]: hook | {"rev": repo.get("rev")} for repo in PRE_COMMIT["repos"] for hook in repo["hooks"]}


def test_pre_commits_ruff_is_the_locked_one():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert (
        HOOKS["ruff-check"]["rev"]
        == HOOKS["ruff-format"]["rev"]
        == "v" + re.search(r"^ruff==(\S+)$", lock, re.MULTILINE)[1]
    )


def test_pre_commit_leaves_generated_files_alone():
    excluded = {hook: HOOKS[hook]["exclude"] for hook in ("end-of-file-fixer", "trailing-whitespace")}
    for pattern in excluded.values():
        for path in (
            "notebooks/a.ipynb",
            "solutions/a.ipynb",
            "assets/tiny-llama/tokenizer.json",
            "requirements.lock",
            "lessons/claims.md",
            "lessons/images/lora.png",
        ):
            assert re.search(pattern, path), path
        for path in ("README.md", "lessons/00_start_here.md", "utils/lora.py", "lessons/claims.toml"):
            assert not re.search(pattern, path), path


def test_pre_commit_has_nothing_to_mend_in_what_is_committed():
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        if not re.search(HOOKS["trailing-whitespace"]["exclude"], name):
            text = path.read_bytes()
            assert not re.search(rb"[ \t]+\r?$", text, re.MULTILINE), f"{name}: blanks at a line's end"
            assert not text or (text.endswith(b"\n") and not text.endswith(b"\n\n")), (
                f"{name}: does not end in one newline"
            )


def test_pre_commits_own_hook_checks_the_build_when_a_part_of_it_changes():
    hook = HOOKS["notebooks-are-built"]
    target = hook["entry"].removeprefix("make ")
    recipe = re.search(rf"^{target}:.*\n\t(.*)$", MAKEFILE, re.MULTILINE)[1]
    assert "--check" in recipe and hook["pass_filenames"] is False
    made = ("notebooks/00_a.ipynb", "solutions/00_a.ipynb", "capstone.py", "utils/course/checks/references/ch00.py")
    for path in ("lessons/00_a.md", *made):
        assert re.search(hook["files"], path), path
    assert not re.search(hook["files"], "utils/lora.py")


# -------------------------------------------------------------------------------- what people fill in


@each_form
def test_an_issue_form_is_one_that_github_takes(path):
    form = parsed(path)
    assert set(form) == {"name", "description", "labels", "body"} and len(form["name"]) > 10
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids)
    for part in form["body"]:
        assert set(part) <= {"type", "id", "attributes", "validations"} and re.fullmatch(r"[a-z]+", part["id"])
        assert part["type"] in ("input", "textarea", "dropdown", "checkboxes") and part["attributes"]["label"]
        assert ("options" in part["attributes"]) == (part["type"] in ("dropdown", "checkboxes"))
        assert part.get("validations", {"required": True}) == {"required": True}
        options = part["attributes"].get("options", [])
        assert all(isinstance(option, str if part["type"] == "dropdown" else dict) for option in options)


@each_form
def test_an_issue_form_asks_for_chapter_0s_report(path):
    (report,) = [part for part in parsed(path)["body"] if part["id"] == "report"]
    assert report["attributes"]["label"].startswith("Chapter 0's report") and report["attributes"]["render"] == "text"
    heading = re.search(r'cell under "(.*?)"', report["attributes"]["description"])[1]
    lesson = (ROOT / "lessons" / "00_start_here.md").read_text(encoding="utf-8")
    assert f"\n## {heading}\n" in lesson
    assert "print(report())" in lesson.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_the_three_forms_ask_what_each_needs():
    required = {
        path.stem: {part["id"] for part in parsed(path)["body"] if part.get("validations", {}).get("required")}
        for path in FORMS
    }
    assert required == {
        "notebook": {"place", "report", "opened", "happened"},
        "claim": {"place", "claim", "truth"},
        "exercise": {"name", "kind", "answer", "verdict", "why"},
    }
    texts = {path.stem: path.read_text(encoding="utf-8") for path in FORMS}
    assert f".venv/{LOG}" in texts["notebook"]
    assert "rejects a right answer" in texts["exercise"] and "accepts a wrong answer" in texts["exercise"]


def test_reports_in_private_go_to_the_repositorys_advisories():
    (link,) = parsed(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")["contact_links"]
    assert link["url"] == f"{ADDRESS}/security/advisories/new"
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md"):  # from OWNER/NAME/blob/REF/FILE to OWNER/NAME/...: a fork's own
        assert "](../../security/advisories/new)" in (ROOT / name).read_text(encoding="utf-8")


def test_nobody_is_made_up():
    for path in [*PAGES, *FORMS, *(ROOT / ".github").glob("*.md")]:
        assert not re.search(r"[\w.+-]+@[\w-]+\.\w+", path.read_text(encoding="utf-8")), (
            f"{path.name} has an e-mail address"
        )


def test_a_pull_request_is_asked_for_what_contributing_asks():
    template = (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
    for words in (
        "`lessons/` only",
        "make notebooks CH=",
        "assets/measurements",
        "`python3 start.py test`",
        "`CHANGELOG.md`",
    ):
        assert words in template


# -------------------------------------------------------------------------------- pages about the course


def test_the_citation_says_what_pyproject_and_the_licences_say():
    citation = parsed(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == PROJECT["version"] and citation["repository-code"] == ADDRESS
    assert PROJECT["license"] == f"{citation['license']} AND CC-BY-4.0" and "CC BY 4.0" in citation["abstract"]
    assert README.startswith(f"# {citation['title']}\n")
    (author,) = citation["authors"]
    holder = re.search(r"^Copyright \d+ (.*)$", (ROOT / "NOTICE").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert author == {"name": holder[0].upper() + holder[1:]}


def test_the_changelog_begins_with_what_is_not_released_and_knows_the_version():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" and headings[1].startswith(f"{PROJECT['version']}, ")


def test_the_import_lines_that_the_changelog_gives_are_right():
    newest = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
    valid = [line.split("|")[2] for line in newest.splitlines() if line.startswith("| ")]
    valid += [line for line in newest.splitlines() if "are as before" in line]
    lines = re.findall(r"`from (\S+) import (.*?)`", "\n".join(valid))
    for module, names in lines:
        there = importlib.import_module(module)
        assert [name for name in names.split(", ") if name != "..." and not hasattr(there, name)] == [], module


def test_the_code_of_conduct_is_the_covenant():
    text = (ROOT / "CODE_OF_CONDUCT.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    parts = "Our Pledge,Our Standards,Enforcement Responsibilities,Scope,Enforcement,Enforcement Guidelines"
    ladder = "1. Correction,2. Warning,3. Temporary Ban,4. Permanent Ban"
    assert headings == ["Contributor Covenant Code of Conduct", *parts.split(","), *ladder.split(","), "Attribution"]
    assert "version 2.1" in text and "[INSERT" not in text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_somewhere(path):
    links = re.findall(r"\]\((?!\w+://|\.\./\.\./)(.*?)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_dev_container_sets_up_as_the_readme_does_and_uses_that_environment():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    python = container["image"].rsplit(":", 1)[1]
    assert container["image"].startswith("mcr.microsoft.com/devcontainers/python:") and python in known_pythons()
    assert f"- python={python}\n" in (ROOT / "environment.yml").read_text(encoding="utf-8")
    word, *rest = container["postCreateCommand"].split()
    assert (word, rest[0]) == ("python3", "start.py") and parse(rest[1:]) == Line("setup")
    venv = "${containerWorkspaceFolder}/.venv"
    settings = container["customizations"]["vscode"]["settings"]
    assert settings["python.defaultInterpreterPath"] == f"{venv}/bin/python"
    assert container["remoteEnv"]["JUPYTER_PATH"] == f"{venv}/share/jupyter"  # where start.py registers the kernel
    assert "ms-toolsai.jupyter" in container["customizations"]["vscode"]["extensions"]
    assert container["customizations"]["codespaces"]["openFiles"] == [FIRST_NOTEBOOK]
    assert container["waitFor"] == "postCreateCommand", "the set-up makes that notebook"
    assert int(container["hostRequirements"]["storage"].removesuffix("gb")) >= GIGABYTES["cuda"]
