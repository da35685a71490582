"""llama.cpp's token ids are the tokenizer's, for each pre-tokenizer, and BOS, EOS and template come out right."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import transformers as t
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tools import export_models as made
from utils.export import ExportError, LlamaCpp, to_gguf
from utils.export.edit import edited
from utils.export.vocabulary import PRE_TOKENIZERS, vocabulary

WORDS = (
    "the fox don't I'LL we'Re 1 22 333 4444 12345 3.14 x=7; naïve café ÅÄÖ 你好世界 日本語 مرحبا שלום привет "
    '🦊 👩‍👩‍👧‍👦 🇫🇷 e\u0301 \u200b ﬁ ½ Ⅷ ... !!! --- ?! "quoted" (a) [b] {c} <d> a_b C++ `code` $5 50% #1 @you'
).split()
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\t\t ", "\u00a0", "\u3000", "        "]


def strings(count: int = 500, seed: int = 0) -> list[str]:
    """Every character of one byte and of the first two, then words and runs of white space in any order."""
    drawn = random.Random(seed)
    every = ["".join(map(chr, range(start, start + 16))) for start in range(0, 512, 16)]
    mixed = [
        "".join(drawn.choice(WORDS) + drawn.choice([*SPACES, ""]) for _ in range(drawn.randint(1, 12)))
        for _ in range(count - len(every) - len(SPACES) - 2)
    ]
    return [*every, *SPACES, "", "a", *mixed]


def trained(rule: str, special: tuple[str, ...] = ("<|end|>", "<|user|>")) -> t.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 600 tokens, trained on such strings, that cuts a text by `rule`."""
    backend = Tokenizer(models.BPE(ignore_merges=PRE_TOKENIZERS[rule] == "llama-bpe"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="byte level" in rule)
    first: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if "digits" in rule else []
    if "byte level" not in rule:
        first = [pre_tokenizers.Split(Regex(rule), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level]) if first else byte_level  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(strings(2000, seed=1), trainer)
    return t.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def tiny_server(tokenizer: Any, path: Path) -> Path:
    """The file of a random model with this tokenizer."""
    config = t.LlamaConfig(**made.SMALL | {"vocab_size": len(tokenizer) + 3, "num_hidden_layers": 1})
    return to_gguf(t.AutoModelForCausalLM.from_config(config), path, "f32", tokenizer=tokenizer)


@pytest.mark.parametrize("rule", PRE_TOKENIZERS)
def test_token_ids_of_500_strings_are_the_tokenizer_s(rule, tmp_path):
    pytest.importorskip("xllamacpp")
    tokenizer = trained(rule)
    asked = strings()
    wanted = [tokenizer.encode(text, add_special_tokens=False) for text in asked]
    file = tiny_server(tokenizer, tmp_path / "model.gguf")
    with LlamaCpp(file) as server:
        assert [server.token_ids(text) for text in asked] == wanted
    others = set(PRE_TOKENIZERS.values()) - {PRE_TOKENIZERS[rule]}
    if PRE_TOKENIZERS[rule] == "qwen2":
        others -= {"llama-bpe"}  # which keeps digits together, and this tokenizer has no token of two digits
    for other in sorted(others):  # the control: a wrong name is seen in some of these strings
        with LlamaCpp(edited(file, tmp_path / "other.gguf", {"tokenizer.ggml.pre": other})) as server:
            assert [server.token_ids(text) for text in asked] != wanted


def test_token_ids_of_the_tiny_model_are_its_tokenizer_s(tmp_path):
    pytest.importorskip("xllamacpp")
    from utils.models.device import TINY_DIR

    tokenizer = made.tiny_tokenizer()
    asked = [*strings(), "<|user|>hi<|assistant|> there<|end|>", "<|user", "<|end|><|end|>"]
    with LlamaCpp(to_gguf(TINY_DIR, tmp_path / "tiny.gguf", "q4_0")) as server:
        assert [server.token_ids(text) for text in asked] == [
            tokenizer.encode(text, add_special_tokens=False) for text in asked
        ]
        assert server.token_ids("hi", special=True) == server.token_ids("hi")  # no BOS that training never saw


def with_bos(template: str) -> t.PreTrainedTokenizerFast:
    tokenizer = trained(list(PRE_TOKENIZERS)[2], ("<|end|>", "<|user|>", "<|begin|>", "<|turn|>"))
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="<|begin|> $A", special_tokens=[("<|begin|>", backend.token_to_id("<|begin|>"))]
    )
    made_ = t.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", bos_token="<|begin|>")
    made_.chat_template = template
    return made_


def test_a_template_that_writes_bos_gives_one_bos_and_not_two(tmp_path):
    pytest.importorskip("xllamacpp")
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|user|>' + m['content'] + '<|turn|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|user|>' }}{% endif %}"
    )
    tokenizer = with_bos(template)
    messages = [{"role": "user", "content": "the fox don't"}]
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    words = vocabulary(tokenizer, len(tokenizer))
    assert words.adds_bos and not words.adds_eos
    with LlamaCpp(tiny_server(tokenizer, tmp_path / "model.gguf")) as server:
        assert server.prompt_ids(messages) == wanted
        assert wanted.count(tokenizer.bos_token_id) == 1
        assert server.token_ids("the fox", special=True) == tokenizer.encode("the fox")


def test_the_file_says_which_tokens_control_and_where_an_answer_ends():
    tokenizer = trained("byte level", ("<|end|>", "<|user|>", "<|eot|>", "<|eom|>"))
    tokenizer.add_tokens(["<think>"])
    size = len(tokenizer) + 2
    words = vocabulary(tokenizer, size, [0, 2, 3])
    assert words.ids == {"eos": 0, "eot": 2, "eom": 3}
    assert [words.types[i] for i in (0, 1, 50, size - 3, size - 1)] == [
        "CONTROL", "CONTROL", "NORMAL", "USER_DEFINED", "UNUSED",
    ]  # fmt: skip
    assert words.tokens[size - 3 :] == ["<think>", f"[PAD{size - 2}]", f"[PAD{size - 1}]"]
    with pytest.raises(ExportError, match="room for three"):
        vocabulary(tokenizer, size, [0, 1, 2, 3])


def test_an_end_that_only_the_generation_config_names_ends_an_answer(tmp_path):
    """Llama 3's and Qwen's folders name several ends: an answer that ends by the second has to end in llama.cpp too."""
    pytest.importorskip("xllamacpp")
    model = made.random_model("Llama")
    first = made.greedy(model, [10, 20, 30], 4)
    model.generation_config.eos_token_id = [1, first[2]]
    file = to_gguf(model, tmp_path / "model.gguf", "f32", tokenizer=made.tiny_tokenizer())
    with LlamaCpp(file) as server:
        assert server.new_ids([10, 20, 30], 8) == first[:2]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda b: setattr(b, "normalizer", normalizers.Lowercase()), "changes a text first"),
        (lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)), "isn't known here"),
        (lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.Whitespace()), "isn't known here"),
        (lambda b: setattr(b.model, "ignore_merges", True), "ignore_merges"),
        (lambda b: setattr(b.model, "byte_fallback", True), "SentencePiece"),
        (lambda b: b.add_tokens([AddedToken("<m>", lstrip=True)]), "blanks beside it"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(change, words):
    tokenizer = trained("byte level")
    change(tokenizer.backend_tokenizer)
    with pytest.raises(ExportError, match=words):
        vocabulary(tokenizer, 700)


def test_a_tokenizer_that_is_larger_than_the_embedding_or_has_no_end_is_refused():
    tokenizer = trained("byte level")
    with pytest.raises(ExportError, match="resize the embedding"):
        vocabulary(tokenizer, len(tokenizer) - 1)
    tokenizer.eos_token = None
    with pytest.raises(ExportError, match="no EOS token"):
        vocabulary(tokenizer, len(tokenizer))
