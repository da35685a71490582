"""A Modelfile holds what the notebook did, is read back by Ollama's rules, and refuses what can't be said in one."""

import pytest

from tests.export.small_gguf import write
from tools.template_talks import families, family_tokenizer
from utils.export import modelfile
from utils.export.errors import ExportError
from utils.export.go_template import go_template
from utils.export.modelfile_syntax import parse
from utils.export.ollama import ends, write_modelfile
from utils.export.parameters import PARAMETERS
from utils.export.turns import read_turns
from utils.models import load_tokenizer


def values(text, name):
    return [command.value for command in parse(text) if command.name == name]


def test_it_says_base_adapter_template_sampling_and_end(tokenizer):
    text = modelfile("./base.gguf", "./style.gguf", tokenizer=tokenizer, license="MIT")
    assert values(text, "from") == ["./base.gguf"] and values(text, "adapter") == ["./style.gguf"]
    assert values(text, "template") == [go_template(read_turns(tokenizer))]
    settings = {
        name: values(text, f"parameter {name}") for name in ("temperature", "repeat_penalty", "num_ctx", "stop")
    }
    assert settings == {"temperature": ["0"], "repeat_penalty": ["1"], "num_ctx": ["512"], "stop": ["<|end|>"]}
    assert values(text, "license") == ["MIT"] and values(text, "system") == []
    assert "# renders otherwise than transformers: two messages of the user's" in text


def test_without_an_adapter_there_is_no_adapter_line(tokenizer):
    assert values(modelfile("merged.gguf", tokenizer=tokenizer), "adapter") == []


def test_the_template_may_be_left_to_llama_cpp(tokenizer):
    text = modelfile("base.gguf", tokenizer=tokenizer, template="gguf")
    assert values(text, "template") == [] and values(text, "parameter stop") == ["<|end|>"]
    tokenizer = load_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ExportError, match='template="gguf"'):
        modelfile("base.gguf", tokenizer=tokenizer)
    assert "TEMPLATE" not in modelfile("base.gguf", tokenizer=tokenizer, template="gguf")


def test_bos_is_written_where_the_file_doesnt_add_it(tmp_path):
    llama3 = family_tokenizer(families()["Llama 3"])
    adds = write(tmp_path / "adds.gguf", fields={"tokenizer.ggml.add_bos_token": True})
    doesnt = write(tmp_path / "doesnt.gguf", fields={"tokenizer.ggml.add_bos_token": False})
    begins = {path: values(modelfile(path, tokenizer=llama3), "template")[0].startswith('{{ "<|begin_of_text|>" }}')
              for path in (adds, doesnt)}  # fmt: skip
    assert begins == {adds: False, doesnt: True}
    assert "<|begin_of_text|>" not in modelfile("not-there.gguf", tokenizer=llama3)  # as the tokenizer does


def test_both_ends_are_stops_where_eos_isnt_the_end_of_turn():
    tokenizer = family_tokenizer(families()["Llama 3"])
    tokenizer.eos_token = "<|end_header_id|>"
    assert ends(tokenizer, read_turns(tokenizer)) == ["<|end_header_id|>", "<|eot_id|>"]
    assert values(modelfile("x", tokenizer=tokenizer), "parameter stop") == ["<|end_header_id|>", "<|eot_id|>"]


def test_parameters_are_added_and_replaced(tokenizer):
    text = modelfile(
        "x", tokenizer=tokenizer, parameters={"temperature": 0.7, "stop": ["a b", 'c"', "d\ne"], "seed": 1}
    )
    assert values(text, "parameter temperature") == ["0.7"] and values(text, "parameter seed") == ["1"]
    assert values(text, "parameter stop") == ["a b", 'c"', "d\ne"]
    assert values(modelfile("x", tokenizer=tokenizer, parameters={"use_mmap": False}), "parameter use_mmap") == [
        "false"
    ]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temprature", 1, "no parameter 'temprature'; it knows .*temperature"),
        ("num_ctx", 512.0, "num_ctx must be a whole number from 1 up, not 512.0"),
        ("num_ctx", "512", "num_ctx must be a whole number from 1 up, not '512'"),
        ("num_ctx", True, "num_ctx must be a whole number from 1 up, not True"),
        ("num_ctx", 0, "num_ctx must be a whole number from 1 up, not 0"),
        ("temperature", "warm", "temperature must be a finite number from 0 up, not 'warm'"),
        ("temperature", float("nan"), "temperature must be a finite number from 0 up, not nan"),
        ("temperature", -1, "temperature must be a finite number from 0 up, not -1"),
        ("temperature", [0.5, 0.7], r"temperature must be a finite number from 0 up, not \[0.5, 0.7\]"),
        ("top_p", 5, "top_p must be a finite number from 0 to 1, not 5"),
        ("repeat_penalty", float("nan"), "repeat_penalty must be a finite number above 0, not nan"),
        ("repeat_penalty", 0, "repeat_penalty must be a finite number above 0, not 0"),
        ("use_mmap", 1, "use_mmap must be true or false, not 1"),
        ("stop", "", "stop must be text that isn't empty, not ''"),
        ("stop", 5, "stop must be text that isn't empty, not 5"),
        ("stop", ["a", None], "stop must be text that isn't empty, not None"),
        ("stop", {"a": 1}, "stop must be text that isn't empty, not {'a': 1}"),
        ("stop", ["\u00a0"], r"stop holds U\+00A0"),
    ],
)
def test_a_parameter_that_ollama_wouldnt_take_is_refused(tokenizer, name, value, words):
    with pytest.raises(ExportError, match=words):
        modelfile("x", tokenizer=tokenizer, parameters={name: value})


@pytest.mark.parametrize("given", [[("seed", 1)], "seed 1", 5])
def test_parameters_are_a_dictionary(tokenizer, given):
    with pytest.raises(ExportError, match="parameters must be a dictionary"):
        modelfile("x", tokenizer=tokenizer, parameters=given)


@pytest.mark.parametrize("given", [{"system": 5}, {"system": ["Be brief."]}, {"license": 5}, {"license": ["MIT"]}])
def test_what_is_to_be_text_is_text(given):
    chatml = family_tokenizer(families()["Qwen2.5 (ChatML)"])
    with pytest.raises(ExportError, match="must be text, not"):
        modelfile("x", tokenizer=chatml, **given)


def test_the_parameters_are_those_of_the_documentation():
    documented = {"num_ctx", "repeat_last_n", "repeat_penalty", "temperature", "seed", "stop", "num_predict",
                  "draft_num_predict", "top_k", "top_p", "min_p"}  # fmt: skip
    assert documented <= set(PARAMETERS)


def test_a_system_message_goes_where_the_template_takes_one(tokenizer):
    chatml = family_tokenizer(families()["Qwen2.5 (ChatML)"])
    assert values(modelfile("x", tokenizer=chatml, system="Talk like a\npirate."), "system") == ["Talk like a\npirate."]
    with pytest.raises(ExportError, match="takes no system message"):
        modelfile("x", tokenizer=tokenizer, system="Talk like a pirate.")


def test_a_licence_loses_what_a_modelfile_cant_hold_and_a_system_message_is_refused():
    chatml = family_tokenizer(families()["Qwen2.5 (ChatML)"])
    assert values(modelfile("x", tokenizer=chatml, license="Page 1\n\fPage 2"), "license") == ["Page 1\nPage 2"]
    with pytest.raises(ExportError, match=r"the system message holds U\+00A0"):
        modelfile("x", tokenizer=chatml, system="10\u00a0km")


def test_base_and_adapter_arent_taken_for_each_other(tmp_path, tokenizer):
    base, adapter = write(tmp_path / "base.gguf"), write(tmp_path / "adapter.gguf", adapter=True)
    with pytest.raises(ExportError, match="the type 'adapter', and the model is expected"):
        modelfile(adapter, base, tokenizer=tokenizer)
    with pytest.raises(ExportError, match="the type 'model', and the adapter is expected"):
        modelfile(base, base, tokenizer=tokenizer)
    (tmp_path / "base.gguf").write_bytes(b"not a file of this kind")
    with pytest.raises(ExportError, match="no whole GGUF file"):
        modelfile(base, tokenizer=tokenizer)
    with pytest.raises(ExportError, match="not 'jinja'"):
        modelfile("x", tokenizer=tokenizer, template="jinja")  # pyright: ignore[reportArgumentType]


def test_it_is_written_beside_the_files_with_paths_seen_from_there(tmp_path, tokenizer):
    folder = tmp_path / "two words"
    folder.mkdir()
    base, adapter = write(tmp_path / "base.gguf"), write(folder / "style.gguf", adapter=True)
    path = write_modelfile(folder, base, adapter, tokenizer=tokenizer, parameters={"seed": 3})
    text = path.read_text(encoding="utf-8")
    assert path == folder / "Modelfile" and values(text, "from") == ["../base.gguf"]
    assert values(text, "adapter") == ["./style.gguf"] and values(text, "parameter seed") == ["3"]
    assert sorted(file.name for file in folder.iterdir()) == ["Modelfile", "style.gguf"]


def test_a_refused_modelfile_leaves_the_old_one(tmp_path, tokenizer):
    base = write(tmp_path / "base.gguf")
    old = write_modelfile(tmp_path, base, tokenizer=tokenizer).read_text(encoding="utf-8")
    for how, error in (
        ({"parameters": {"nope": 1}}, ExportError),
        ({"adapter_gguf": tmp_path / "no"}, FileNotFoundError),
    ):
        with pytest.raises(error):
            write_modelfile(tmp_path, base, tokenizer=tokenizer, **how)
    assert (tmp_path / "Modelfile").read_text(encoding="utf-8") == old
    assert sorted(file.name for file in tmp_path.iterdir()) == ["Modelfile", "base.gguf"]


@pytest.mark.parametrize(("longest", "written"), [(512, 512), (131_072, 8192), (int(1e30), 8192), (None, 8192)])
def test_no_more_context_is_asked_for_than_memory_can_be_taken_for_granted(longest, written):
    """A 7B model's keys and values of 131,072 tokens take gigabytes, which Ollama would reserve."""
    from utils.export.ollama import default_context

    assert default_context(longest) == written
