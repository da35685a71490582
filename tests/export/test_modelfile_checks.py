"""What is wrong with a Modelfile is found by name, and nothing is found in the one that the course writes."""

import pytest

from tests.export.small_gguf import write
from tools.template_talks import families, family_tokenizer
from utils.export import check_modelfile
from utils.export.errors import ExportError
from utils.export.ollama import modelfile, write_modelfile

CHATML = '"""<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n"""'
OLDER = "<|user|>{{ .Prompt }}<|assistant|>{{ .Response }}<|end|>"


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "base.gguf", fields={"tokenizer.chat_template": "{{ messages }}"})
    write(tmp_path / "style.gguf", adapter=True)
    return tmp_path


def names(text, tokenizer, folder):
    return [one.name for one in check_modelfile(text, tokenizer=tokenizer, folder=folder)]


def good(tokenizer, folder):
    return write_modelfile(folder, folder / "base.gguf", folder / "style.gguf", tokenizer=tokenizer).read_text()


def test_nothing_is_wrong_with_what_modelfile_writes(tokenizer, folder):
    assert names(good(tokenizer, folder), tokenizer, folder) == []
    for family in families().values():
        own = family_tokenizer(family)
        assert names(good(own, folder), own, folder) == []


def swapped(text, command, line):
    kept = [one for one in text.split("\n") if not one.startswith(command)]
    return "\n".join([*kept, line])


def without_template(text):
    before, _, rest = text.partition('TEMPLATE """')
    return before + rest.partition('"""\n')[2]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without_template, "no template"),
        (lambda text: without_template(text) + f"TEMPLATE {CHATML}\n", "another template"),
        (lambda text: without_template(text) + f"TEMPLATE {OLDER}\n", None),
        (lambda text: without_template(text) + 'TEMPLATE """<|user|>{{ .Prompt }}<|end|> <|assistant|> """\n',
         "no generation prompt"),
        (lambda text: swapped(text, "PARAMETER num_ctx", ""), "no num_ctx"),
        (lambda text: swapped(text, "PARAMETER num_ctx", "PARAMETER num_ctx 4096"), "num_ctx too long"),
        (lambda text: swapped(text, "PARAMETER temperature", ""), "no temperature"),
        (lambda text: text + "PARAMETER low_vram true\n", "unknown parameter"),
        (lambda text: text + "ADAPTER ./other.gguf\nADAPTER ./style.gguf\n", "several adapters"),
        (lambda text: swapped(text, "FROM", "FROM llama3.2"), "another base"),
        (lambda text: swapped(text, "FROM", "FROM ./not-there.gguf"), "no file"),
        (lambda text: swapped(text, "ADAPTER", "ADAPTER ./base.gguf"), "no adapter"),
        (lambda text: swapped(text, "FROM", "FROM ./style.gguf"), "no base"),
        (lambda text: swapped(text, "PARAMETER stop", ""), None),  # the GGUF file knows its EOS token
    ],
)  # fmt: skip
def test_each_mistake_is_named(tokenizer, folder, change, found):
    got = names(change(good(tokenizer, folder)), tokenizer, folder)
    assert (found in got) if found else got == []


def test_a_missing_stop_is_found_where_the_file_doesnt_know_the_end(tokenizer, folder):
    text = swapped(good(tokenizer, folder), "PARAMETER stop", "")
    write(folder / "base.gguf", fields={"tokenizer.ggml.eot_token_id": 1})
    chatml = family_tokenizer(families()["Qwen2.5 (ChatML)"])
    found = {one.name: one for one in check_modelfile(text, tokenizer=chatml, folder=folder)}
    assert found["no stop"].cure == 'PARAMETER stop "<|im_end|>"' and "<|im_end|>" in found["no stop"].what


@pytest.mark.parametrize(
    ("adds", "family", "begin", "found"),
    [
        (True, "Llama 3", '{{ "<|begin_of_text|>" }}', "double BOS"),
        (True, "Llama 3", "<|begin_of_text|>", "double BOS"),
        (True, "Llama 3", "", None),
        (False, "Llama 3", "", "no BOS"),
        (False, "Llama 3", "<|begin_of_text|>", None),
        (True, "Qwen2.5 (ChatML)", "", "BOS too many"),
        (False, "Qwen2.5 (ChatML)", "", None),
    ],
)
def test_bos_is_counted_over_template_and_file(tmp_path, adds, family, begin, found):
    own = family_tokenizer(families()[family])
    write(tmp_path / "base.gguf", fields={"tokenizer.ggml.add_bos_token": adds})
    text = modelfile("./none.gguf", tokenizer=own).replace("./none.gguf", "./base.gguf")
    text = text.replace('TEMPLATE """', f'TEMPLATE """{begin}')
    assert [one for one in names(text, own, tmp_path) if "BOS" in one] == ([found] if found else [])


def test_an_adapter_of_another_shape_and_a_quantized_base_are_found(tokenizer, folder):
    text = good(tokenizer, folder)
    write(folder / "style.gguf", adapter=True, width=64)
    assert "another base" in names(text, tokenizer, folder)
    write(folder / "style.gguf", adapter=True)
    write(folder / "base.gguf", fields={"quantized": True})
    assert names(text, tokenizer, folder) == ["quantized base"]


def test_a_template_that_ollama_leaves_aside_for_the_files_own_is_found(tokenizer, folder):
    text = good(tokenizer, folder)
    write(folder / "base.gguf", fields={"tokenizer.chat_template": "{% if tools %}{{ tools }}{% endif %}"})
    assert names(text, tokenizer, folder) == ["template left aside"]


def test_a_default_system_message_that_the_template_leaves_out_is_found(folder):
    smollm2 = family_tokenizer(families()["SmolLM2 (ChatML)"])
    turn = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    guess = f'"""{turn}<|im_start|>assistant\n"""'
    assert "no default system message" in names(f"FROM ./x.gguf\nTEMPLATE {guess}\n", smollm2, folder)


def test_without_a_tokenizer_less_is_known_and_what_ollama_refuses_is_refused(folder):
    assert [one.name for one in check_modelfile("FROM ./base.gguf\n", folder=folder)] == [
        "no template", "no num_ctx", "no temperature",
    ]  # fmt: skip
    with pytest.raises(ExportError, match="no FROM line"):
        check_modelfile("SYSTEM x\n")


@pytest.mark.parametrize(
    ("line", "name", "verdict"),
    [
        ("top_p 5", "impossible parameter", "wrong"),
        ("temperature -1", "impossible parameter", "wrong"),
        ("repeat_penalty nan", "impossible parameter", "wrong"),
        ("num_ctx 0", "impossible parameter", "wrong"),
        ("num_ctx many", "unreadable parameter", "refuses"),
        ("num_ctx 4_096", "unreadable parameter", "refuses"),
        ("use_mmap maybe", "unreadable parameter", "refuses"),
        ("mirostat 1", "unknown parameter", "refuses"),
    ],
)
def test_a_value_that_cant_be_is_found_with_what_can(line, name, verdict):
    text = f"FROM llama3.2\nTEMPLATE x\nPARAMETER num_ctx 10\nPARAMETER temperature 0\nPARAMETER {line}\n"
    (found,) = check_modelfile(text)
    assert (found.name, found.verdict) == (name, verdict)
    assert line.split()[0] in found.what and (name == "unknown parameter" or line.split()[0] in found.cure)


def test_values_within_their_range_are_none_of_its_business():
    lines = "top_p 1\nseed 42\nrepeat_penalty 0.9\nrepeat_last_n -1\nnum_predict -1\nuse_mmap F\nmin_p 0.05\nstop 5"
    text = "FROM llama3.2\nTEMPLATE x\nPARAMETER num_ctx 10\nPARAMETER temperature 0\n"
    assert check_modelfile(text + "".join(f"PARAMETER {line}\n" for line in lines.splitlines())) == []
