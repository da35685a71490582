"""utils.course.own_export: each export is written, asked, and said for what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import capstone
import utils.export.llama_cpp
from utils.course import own_export
from utils.course.own_export import asked, export
from utils.course.own_run import EXPORTS
from utils.evaluate.report import ROOM
from utils.export.errors import ExportError
from utils.models import TINY_DIR, ModelUnavailable, load_tokenizer
from utils.tinyworld import task_examples
from utils.train.adapter_cache import adapter_dir

EXAMPLES = task_examples("style", "test", 3)


@pytest.fixture
def out(tmp_path) -> Path:
    """A finished run: the shipped style adapter, which has these answers right, with its evaluation."""
    folder = tmp_path / "my adapter"
    shutil.copytree(adapter_dir("style"), folder)
    replies = [
        {"earlier": [], "prompt": e.prompt, "wanted": e.answer, "base": "", "adapter": e.answer} for e in EXAMPLES
    ]
    (folder / "evaluation.json").write_text(json.dumps({"replies": replies}), encoding="utf-8")
    return folder


def tried(out: Path | str, kinds) -> tuple[list[str], str]:
    """What is said of each export, and of those that failed, in the end."""
    said: list[str] = []
    try:
        for line in export(out, kinds):
            said.append(line)
    except ExportError as error:
        return said, str(error)
    return said, ""


def changed(out: Path, **settings) -> None:
    """Other settings in the adapter's file."""
    path = out / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_the_prompts_are_the_runs_with_the_turns_before_and_as_much_room(out):
    path = out / "evaluation.json"
    content = json.loads(path.read_text())
    content["replies"][0]["earlier"] = [["system", "Be brief."]]
    path.write_text(json.dumps(content))
    found = asked(out, load_tokenizer())
    assert found.prompts[0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": EXAMPLES[0].prompt},
    ]
    assert found.answers == [e.answer for e in EXAMPLES]
    lengths = [len(load_tokenizer()(e.answer)["input_ids"]) for e in EXAMPLES]
    assert found.most == max(lengths) + ROOM


def test_gguf_and_ollama_are_asked_under_llama_cpp(out):
    pytest.importorskip("xllamacpp", reason="llama.cpp isn't installed here")
    gguf, ollama = export(out, ["gguf", "ollama"])
    assert "llama.cpp loads them and answers 3 of 3 held-out prompts as transformers does." in gguf
    assert sorted(p.name for p in out.with_name("my adapter-gguf").iterdir()) == ["adapter-f16.gguf", "base-f16.gguf"]
    assert "3 of 3" in ollama and "Ollama itself, which computes with llama.cpp, wasn't run." in ollama
    assert "ollama create my-adapter -f" in ollama
    text = (out.with_name("my adapter-ollama") / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./base-f16.gguf" in text and "ADAPTER ./adapter-f16.gguf" in text


def test_an_answer_that_differs_is_shown(out):
    pytest.importorskip("xllamacpp", reason="llama.cpp isn't installed here")
    path = out / "evaluation.json"
    path.write_text(path.read_text().replace(json.dumps(EXAMPLES[1].answer)[1:-1], "Ahoy"))
    (said,) = export(out, ["gguf"])
    assert (
        f"answers 2 of 3 held-out prompts as transformers does; in place of 'Ahoy' it says {EXAMPLES[1].answer!r}"
        in said
    )


def test_without_llama_cpp_the_files_are_written_and_said_to_be_untried(out, monkeypatch):
    def absent(*_, **__):
        raise ExportError("xllamacpp isn't installed: pip install xllamacpp.")

    monkeypatch.setattr(utils.export.llama_cpp, "LlamaCpp", absent)
    (said,) = export(out, ["gguf"])
    assert "Not tried: xllamacpp isn't installed: pip install xllamacpp." in said and "loads" not in said
    assert out.with_name("my adapter-gguf").is_dir()


def test_vllm_gets_its_command_or_the_reason_why_not(out):
    (said,) = export(out, ["vllm"])
    assert "It takes the folder as it is; it wasn't run here." in said
    assert said.endswith(f"--enable-lora --max-lora-rank 8 --lora-modules 'my-adapter={out}'")
    changed(out, use_dora=True)
    (said,), failed = tried(out, ["vllm"])
    assert said.startswith("vllm: not exported. It can't be served.") and "refused: it uses DoRA" in said
    assert "vllm serve" not in said and failed == "1 of 1 exports weren't made: vllm"


@pytest.mark.parametrize(
    "named, command", [("tiny-llama", str(TINY_DIR)), ("owner/other", "owner/other"), (None, "BASE"), ("", "BASE")]
)
def test_vllms_command_names_the_base_that_was_trained_on(out, named, command):
    changed(out, base_model_name_or_path=named)
    (said,) = export(out, ["vllm"])
    assert f"vllm serve {command} --enable-lora" in said
    assert ("Put the base that it was trained on in the place of BASE" in said) == (command == "BASE")
    assert (str(TINY_DIR) in said) == (command == str(TINY_DIR)), "the profile's base is nobody's but its own"


def test_the_hubs_folder_is_loaded_by_peft_and_nothing_is_sent(out):
    (said,) = export(out, ["hub-dry-run"])
    assert "PEFT loads it and answers 3 of 3 held-out prompts as transformers does." in said
    assert "https://huggingface.co/YOU/my-adapter (private)" in said and "left out: evaluation.json" in said
    sent = json.loads((out.with_name("my adapter-hub") / "adapter_config.json").read_text())
    assert sent["base_model_name_or_path"] == "tiny-llama"


def test_one_that_fails_is_said_and_the_next_follows(out):
    (out / "evaluation.json").unlink()
    (first, second), failed = tried(out, ["hub-dry-run", "vllm"])
    assert failed == "1 of 2 exports weren't made: hub-dry-run"
    assert first.startswith("hub-dry-run: not exported. ") and "holds no evaluation.json" in first
    assert second.startswith("vllm: my adapter for vLLM")


def test_the_script_exports_a_finished_run_without_another_training(out, capsys, monkeypatch):
    monkeypatch.setattr(capstone, "fine_tune", lambda *_: pytest.fail("it trained again"))
    capstone.main(["--data", "gone.csv", "--out", str(out), "--export", "vllm"])
    assert capsys.readouterr().out.startswith("vllm: my adapter for vLLM: nothing found")


def test_the_script_ends_with_an_error_when_one_export_failed_and_the_others_are_made(out, capsys, monkeypatch):
    monkeypatch.setattr(capstone, "fine_tune", lambda *_: pytest.fail("it trained again"))
    (out / "evaluation.json").unlink()
    with pytest.raises(SystemExit) as ended:
        capstone.main(["--data", "gone.csv", "--out", str(out), "--export", "gguf", "vllm", "hub-dry-run"])
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.err == "error: 2 of 3 exports weren't made: gguf, hub-dry-run\n"
    assert [line.partition(":")[0] for line in said.out.splitlines() if not line.startswith(" ")] == [
        "gguf", "vllm", "hub-dry-run",
    ]  # fmt: skip
    assert "vllm serve" in said.out


def test_a_base_that_cant_be_had_stops_its_export_and_no_other(out, monkeypatch):
    def absent():
        raise ModelUnavailable("owner/base isn't on this machine")

    monkeypatch.setattr(own_export, "load_base", absent)
    said, failed = tried(out, ["gguf", "vllm"])
    assert said[0] == "gguf: not exported. owner/base isn't on this machine" and "vllm serve" in said[1]
    assert failed == "1 of 2 exports weren't made: gguf"


@pytest.mark.parametrize("kind", ["gguf", "ollama", "hub-dry-run"])
def test_an_adapter_of_another_base_than_the_profiles_isnt_written_with_that_one(out, kind):
    changed(out, base_model_name_or_path="Qwen/Qwen2.5-7B-Instruct")
    (said,), failed = tried(out, [kind])
    assert "was trained on Qwen/Qwen2.5-7B-Instruct, and COURSE_PROFILE=tiny loads" in said and failed
    assert [each.name for each in out.parent.iterdir()] == [out.name]


def test_a_home_is_found_by_its_sign(out, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(out.parent))
    monkeypatch.setenv("USERPROFILE", str(out.parent))
    (said,) = export("~/my adapter", ["vllm"])
    assert said.endswith(f"'my-adapter={out}'")
    capstone.main(["--data", "gone.csv", "--out=~/my adapter", "--export", "vllm"])
    assert f"'my-adapter={out}'" in capsys.readouterr().out


def test_each_that_the_command_line_names_is_there(out):
    changed(out, peft_type="LOHA")
    said, failed = tried(out, EXPORTS)
    assert failed.startswith("3 of 4 ")
    assert [one.partition(":")[0] for one in said] == list(EXPORTS)
    assert all("LOHA" in one for one in said[:3]), said


@pytest.mark.parametrize("damage", [None, "{}", '{"replies": []}', '{"replies": [{"prompt": "x"}]}', "{", "[1]"])
def test_without_answers_to_compare_with_nothing_is_written(out, damage):
    """The folder would be in the way of the next export, and says nothing of itself."""
    path = out / "evaluation.json"
    path.unlink()
    if damage is not None:
        path.write_text(damage)
    said, _ = tried(out, EXPORTS)
    assert all("not exported. " in line and "evaluation.json" in line for line in said if not line.startswith("vllm"))
    assert [each.name for each in out.parent.iterdir()] == [out.name]


def test_an_export_is_made_once(out):
    assert len(list(export(out, ["vllm", "vllm"]))) == 1
