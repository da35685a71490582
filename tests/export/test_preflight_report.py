"""The preflight's rules: adapters that PEFT made, held against the servers' own code where it is here."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from tests.export.adapters_of_all_kinds import KINDS, copied, saved, settings
from tests.small_llama import small
from utils.export.adapter_facts import adapter_facts
from utils.export.errors import ExportError
from utils.export.gguf import to_gguf
from utils.export.preflight_report import preflight
from utils.export.preflight_rules import CONVERTIBLE, FINDERS, TARGETS, VLLM_RANKS
from utils.lora.checkpoint import WEIGHTS
from utils.models import ROOT, TINY_DIR

R, W, L = "refuses", "wrong", "look"
STYLE = ROOT / "assets" / "adapters" / "style"
# What vLLM, llama.cpp (and Ollama with its file), MLX and SGLang make of each kind.
EXPECTED = {
    "plain": {},
    "rank 16": {},
    "rank 24": {"vllm": R},
    "rank 600": {"vllm": R},
    "rank_pattern 24": {"vllm": R, "sglang": R},
    "dora": {"vllm": R, "llama.cpp": R, "sglang": R},
    "rslora": {"llama.cpp": W, "sglang": W},
    "alpha_pattern": {"llama.cpp": W, "sglang": W},
    "rank_pattern": {"sglang": R},
    "modules_to_save": {"vllm": R, "llama.cpp": R, "mlx": R, "sglang": W},
    "norms": {"vllm": R, "llama.cpp": W, "mlx": R, "sglang": R},
    "tokens": {"vllm": R, "llama.cpp": R, "mlx": R, "sglang": W},
    "bias": {"vllm": R, "llama.cpp": R, "mlx": R, "sglang": W},
    "lora_bias": {"vllm": R, "llama.cpp": R, "mlx": R, "sglang": W},
    "experts": {"llama.cpp": R, "mlx": R, "sglang": R},
    "embedding": {"llama.cpp": R, "mlx": R},
    "head": {"llama.cpp": L, "mlx": L},
    "pissa": {"vllm": R, "llama.cpp": W, "mlx": W, "sglang": W},
    "pattern": {"sglang": R},
    "gpt2": {"vllm": R, "llama.cpp": R, "mlx": R},
    "repeated": {"vllm": R, "llama.cpp": R, "mlx": R, "sglang": W},
    "activated": {"vllm": R, "llama.cpp": R, "mlx": R, "sglang": W},
    "loha": dict.fromkeys(("vllm", "llama.cpp", "mlx", "sglang"), R),
    "vera": dict.fromkeys(("vllm", "llama.cpp", "mlx", "sglang"), R),
    "ia3": dict.fromkeys(("vllm", "llama.cpp", "mlx", "sglang"), R),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: saved(kind, folder / kind.replace(" ", "-")) for kind in KINDS}


def test_every_kind_is_expected():
    assert KINDS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_each_target_makes_of_each_kind(kinds, kind, target):
    found = preflight(kinds[kind], target)
    verdicts = {one.verdict for one in found.findings if one.name != "folder"}
    wanted = EXPECTED[kind].get("llama.cpp" if target == "ollama" else target)
    assert verdicts == ({wanted} if wanted else set()), str(found)
    assert all(one.what and one.cure and one.source for one in found.findings)


def test_every_rule_is_tried_by_some_kind(kinds, tmp_path):
    rest = [copied(kinds["plain"], tmp_path / "a", base_model_name_or_path=None)]
    (rest[0] / "added_tokens.json").write_text("{}")
    folders = [*kinds.values(), *rest]
    silent = [
        finder.__name__
        for finder in FINDERS
        if not any(list(finder(adapter_facts(f), target, None)) for f in folders for target in TARGETS)
    ]
    assert silent == []


# ---------------------------------------------------------------------------------------------- against the real things


LLAMA_LIKE = [kind for kind in KINDS if kind not in ("gpt2", "experts")]


@pytest.mark.parametrize("kind", LLAMA_LIKE)
def test_to_gguf_refuses_what_is_said_to_be_refused(kinds, kind, tmp_path):
    base = KINDS[kind]()[0]
    refused = preflight(kinds[kind], "llama.cpp").refused
    if refused or kind in ("norms", "pissa"):  # these two llama.cpp's own converter writes
        with pytest.raises(ExportError):
            to_gguf(kinds[kind], tmp_path / "a.gguf", "f32", base=base)
    else:
        assert to_gguf(kinds[kind], tmp_path / "a.gguf", "f32", base=base).is_file()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt2"])  # that is the model's refusal
def test_vllm_refuses_what_is_said_to_be_refused(kinds, kind):
    helper = pytest.importorskip("vllm.lora.peft_helper", reason="vLLM isn't installed here")
    names = importlib.import_module("vllm.lora.utils")
    config = importlib.import_module("vllm.config.lora").LoRAConfig()

    def load() -> None:
        helper.PEFTHelper.from_local_dir(str(kinds[kind]), 512).validate_legal(config)
        for name in load_file(kinds[kind] / WEIGHTS):
            names.parse_fine_tuned_lora_name(name)

    if preflight(kinds[kind], "vllm").refused:
        with pytest.raises(ValueError):
            load()
    else:
        load()


def test_vllms_ranks_are_vllms():
    config = pytest.importorskip("vllm.config.lora", reason="vLLM isn't installed here")
    assert config.MaxLoRARanks.__args__ == VLLM_RANKS


def test_the_methods_that_peft_turns_into_lora():
    def convertible(method: str) -> bool:
        home = "adalora" if method == "ADALORA" else method.lower()
        layers = importlib.import_module(f"peft.tuners.{home}.layer")
        kinds = [one for _, one in inspect.getmembers(layers, inspect.isclass) if issubclass(one, BaseTunerLayer)]
        return any(kind.supports_lora_conversion is not BaseTunerLayer.supports_lora_conversion for kind in kinds)

    methods = [one.value for one in peft.PeftType if importlib.util.find_spec(f"peft.tuners.{one.value.lower()}.layer")]
    assert sorted(one for one in methods if one != "LORA" and convertible(one)) == sorted(CONVERTIBLE)


# ------------------------------------------------------------------------------------------------------------ the cures


def test_the_rank_that_is_named_is_the_next_that_vllm_takes(kinds):
    found = preflight(kinds["rank 24"], "vllm").refused[0]
    assert found.what == "rank 24 is above --max-lora-rank 16 (its default)"
    assert found.cure == "start it with --max-lora-rank 32"
    assert not preflight(kinds["rank 24"], "vllm", max_rank=32).findings
    assert "save_as_lora" in preflight(kinds["rank 600"], "vllm", max_rank=512).refused[0].cure
    assert preflight(kinds["rank 24"], "sglang", max_rank=16).refused[0].cure == "start it with --max-lora-rank 24"
    assert not preflight(kinds["rank 24"], "sglang").findings, "it takes the largest that it starts with"


def test_sglangs_cure_of_rslora_is_the_same_update(kinds, tmp_path):
    found = preflight(kinds["rslora"], "sglang").wrong[0]
    assert "2 times too weak" in found.what and "set lora_alpha to 16 and use_rslora to false" in found.cure
    plain = copied(kinds["rslora"], tmp_path / "plain", lora_alpha=16, use_rslora=False)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        wanted, got = (peft.PeftModel.from_pretrained(small(), f).eval()(ids).logits for f in (kinds["rslora"], plain))
    assert torch.equal(wanted, got), "alpha / sqrt(4) = 4 = 16 / 4, the same number"


@pytest.mark.parametrize("kind, rank", [("loha", 16), ("vera", 8)])
def test_another_method_written_as_lora_passes_and_computes_the_same(kinds, kind, rank, tmp_path):
    """LoHa's update here has the rank of the narrower side, VeRA's its own: kept whole, only rounding differs."""
    model = peft.PeftModel.from_pretrained(small(), kinds[kind]).eval()
    peft.save_as_lora(tmp_path / "as-lora", model, rank=rank)
    assert not preflight(tmp_path / "as-lora", "vllm").refused
    ids = torch.arange(8)[None]
    with torch.no_grad():
        wanted, base = model(ids).logits, small().eval()(ids).logits
        got = peft.PeftModel.from_pretrained(small(), tmp_path / "as-lora").eval()(ids).logits
    assert (wanted - base).abs().max() > 1e-4, "the adapter does something"
    # float32: an SVD of entries below 1 is good to some 1e-6 of them, and one block passes it on
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_dora_written_as_lora_is_another_model(kinds, tmp_path):
    """Why the cure is to merge: PEFT converts what DoRA adds before its lengths, without a word."""
    model = peft.PeftModel.from_pretrained(small(), kinds["dora"]).eval()
    peft.save_as_lora(tmp_path / "as-lora", model, rank=16)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        wanted, base = model(ids).logits, small().eval()(ids).logits
        got = peft.PeftModel.from_pretrained(small(), tmp_path / "as-lora").eval()(ids).logits
    assert (got - wanted).abs().max() > 0.5 * (wanted - base).abs().max()


# ------------------------------------------------------------------------------------------------------- what it prints


def test_the_courses_adapter_passes_everywhere_but_as_ollamas_folder():
    for target in TARGETS:
        found = preflight(STYLE, target)
        assert [one.name for one in found.findings] == (["folder"] if target == "ollama" else [])
        assert not found.refused
    assert str(preflight(STYLE, "vllm")) == (
        "style for vLLM: nothing found that it refuses or gets wrong; its base wasn't compared (base=)"
    )
    assert str(preflight(STYLE, "vllm", base=TINY_DIR)) == "style for vLLM: nothing found that it refuses or gets wrong"


def test_print_says_what_why_and_what_instead(kinds):
    said = str(preflight(kinds["dora"], "vllm")).splitlines()
    assert said[0] == "dora for vLLM: 1 refused; its base wasn't compared (base=)"
    assert said[1].startswith("  refused: it uses DoRA") and said[2].startswith("    instead: merge it into its base")
    assert said[3] == "    [dora; vLLM, vllm/lora/peft_helper.py, _validate_features]"


def test_what_is_refused_can_be_raised(kinds):
    preflight(kinds["plain"], "vllm").checked()
    preflight(kinds["rslora"], "sglang").checked()
    both = settings(kinds["dora"], bias="all")
    with pytest.raises(ExportError, match=r"vLLM refuses dora: it uses DoRA.* Instead: merge.*\(1 more: bias\)"):
        preflight(both, "vllm").checked()
    settings(kinds["dora"], bias="none")


# --------------------------------------------------------------------------------------------------- what is no adapter


def test_it_says_what_is_wrong_with_the_question_or_the_folder(kinds, tmp_path):
    with pytest.raises(ExportError, match=r"no rules for 'tgi', only for vllm, llama\.cpp"):
        preflight(kinds["plain"], "tgi")
    with pytest.raises(ExportError, match=r"--max-lora-rank takes 1, 8, 16, 32, .*, not 24"):
        preflight(kinds["plain"], "vllm", max_rank=24)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json"):
        preflight(tmp_path, "vllm")
    folder = copied(kinds["plain"], tmp_path / "pickled")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"a pickle, is there instead"):
        preflight(folder, "vllm")
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors: copy the adapter again"):
        preflight(folder, "vllm")


def test_one_ranks_share_is_refused_before_any_rule(kinds, tmp_path):
    folder = copied(kinds["plain"], tmp_path / "share")
    tensors = load_file(folder / WEIGHTS)
    half = {n: t[: len(t) // 2].contiguous() if "lora_A" in n else t for n, t in tensors.items()}
    save_file(half, folder / WEIGHTS)
    with pytest.raises(ValueError, match="one rank's share"):
        preflight(folder, "vllm")


def test_no_weight_is_read(kinds, tmp_path):
    """A file whose header is whole and whose numbers are a hole of the same size gives the same findings."""
    folder = copied(kinds["dora"], tmp_path / "hollow")
    data = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    (folder / WEIGHTS).write_bytes(data[:end] + b"\xff" * (len(data) - end))  # NaN in every dtype
    assert preflight(folder, "vllm").findings == preflight(kinds["dora"], "vllm").findings
