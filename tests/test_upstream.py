"""Faults of other libraries that the course works around, each shown without our workaround.

A test that fails here is good news: the fault is gone in the installed version. Raise the lower bound in
pyproject.toml to it, and the workaround and its test can go; ARCHITECTURE.md lists them.
"""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from utils.models import load_4bit, load_base, load_tokenizer

pytestmark = pytest.mark.locked  # newer versions may have mended a fault: see CONTRIBUTING, the newest versions

torch.set_num_threads(1)
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


def needed(still: object, workaround: str) -> None:
    """Fail with what to remove when the fault isn't there any more."""
    if not still:
        pytest.fail(f"this workaround can go: {workaround}")


@contextmanager
def needed_while_this_raises(error: type[Exception], workaround: str) -> Iterator[None]:
    try:
        yield
    except error:
        return
    needed(False, workaround)


def adapted(**settings: object) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(nn.Sequential(nn.Linear(8, 8)), LoraConfig(target_modules=["0"], **settings))


# ------------------------------------------------------------------------------------------------------------ openai


def test_openai_leaves_the_generator_of_a_closed_stream_to_the_collector():
    import asyncio
    import importlib

    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    library = next(kind for kind in DefaultAsyncHttpxClient.__mro__ if kind.__name__ == "AsyncClient").__module__
    http = importlib.import_module(library.partition(".")[0])  # httpx, or what openai has put in its place
    chunk = b'data: {"id":"1","object":"chat.completion.chunk","created":0,"model":"m","choices":[]}\n\n'
    answers = http.MockTransport(lambda _: http.Response(200, content=2 * chunk + b"data: [DONE]\n\n"))

    async def open_after_close() -> bool:
        http_client = DefaultAsyncHttpxClient(transport=answers)
        async with AsyncOpenAI(base_url="http://here", api_key="none", http_client=http_client) as client:
            stream = await client.chat.completions.create(model="m", messages=[], stream=True)
            await anext(aiter(stream))
            await stream.close()
            left = stream._iterator.ag_frame is not None
            await stream._iterator.aclose()
            return left

    needed(asyncio.run(open_after_close()), "gateway._answer closes the stream's _iterator")


# ------------------------------------------------------------------------------------------------------ bitsandbytes


@pytest.mark.skipif(not AVX512, reason="bitsandbytes' kernel for AVX-512 alone has the fault")
def test_bitsandbytes_reads_another_rows_scales_where_64_does_not_divide_the_width():
    from bitsandbytes import functional

    from utils.quant import nf4

    values = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    theirs = functional.dequantize_4bit(*functional.quantize_4bit(values, quant_type="nf4"))
    right = nf4.dequantize(nf4.quantize(values))
    needed(not torch.equal(theirs, right), "loading.keep_trainable refuses widths that 64 doesn't divide")


def has_avx512_bf16() -> bool:
    from bitsandbytes.functional import has_avx512bf16

    return has_avx512bf16()


def test_bitsandbytes_repacks_a_layer_that_is_evaluated_and_passes_no_gradient_on():
    from bitsandbytes.nn import Linear4bit

    if not has_avx512_bf16():
        pytest.skip("bitsandbytes repacks on a CPU with AVX512-BF16 alone")
    layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    x = torch.randn(2, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.any(), "before it was evaluated the layer passes gradients on"
    with torch.no_grad():
        layer.eval()(x.detach())
    x.grad = None
    try:
        layer.train()(x).sum().backward()
    except RuntimeError:  # the output has no gradient at all
        pass
    needed(x.grad is None or not x.grad.any(), "loading.keep_trainable")


@pytest.mark.slow
def test_bitsandbytes_warns_of_a_kernel_that_can_be_downloaded():
    if not has_avx512_bf16():
        pytest.skip("bitsandbytes looks for the kernel on a CPU with AVX512-BF16 alone")
    done = subprocess.run([sys.executable, "-c", "import bitsandbytes"], capture_output=True, text=True)
    needed("gemm_4bit_forward" in done.stderr, "quiet.quiet_upstream sets the level of bitsandbytes' logger")


# -------------------------------------------------------------------------------------------------------------- PEFT


def test_peft_takes_no_generator_for_the_masks_of_dare():
    from peft.tuners.lora import LoraModel

    names = set(inspect.signature(LoraModel.add_weighted_adapter).parameters)
    needed(not names & {"generator", "seed"}, "combine.mask_seed: pass the generator to add_weighted_adapter")


def test_peft_asks_for_checkpointing_by_its_old_name():
    from peft import LoraConfig, get_peft_model

    model, _ = load_base()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    needed(
        any("is_gradient_checkpointing" in str(w.message) for w in caught),
        "quiet.quiet_upstream and pyproject's filterwarnings for is_gradient_checkpointing",
    )


def test_nothing_takes_back_the_gradient_of_the_inputs_that_peft_switches_on():
    from peft import LoraConfig, get_peft_model

    from utils.profiling.activations import checkpoint_blocks

    model, _ = load_base()
    checkpoint_blocks(model)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    checkpoint_blocks(model, on=False)
    out = model.get_input_embeddings()(torch.tensor([[5]]))
    needed(out.requires_grad, "gpu_step and techniques call disable_input_require_grads")


def test_peft_loads_a_checkpoint_of_another_alpha_without_a_word(tmp_path):
    """What the Trainer calls when it resumes: the matrices fit, and every correction is four times as large."""
    adapted(r=2, lora_alpha=2).save_pretrained(tmp_path)
    model = adapted(r=2, lora_alpha=8)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    scaling = model.base_model.model[0].scaling["default"]
    needed(scaling == 4, "sft.check_checkpoint compares the adapter's settings (_MAY_DIFFER)")


def test_peft_leaves_the_settings_of_a_slot_that_it_swapped_as_they_were(tmp_path):
    """So that a slot which is saved is another adapter: the scaling is 4, and the settings say 1."""
    from peft.utils.hotswap import hotswap_adapter

    adapted(r=2, lora_alpha=8).save_pretrained(tmp_path)
    model = adapted(r=2, lora_alpha=2)
    hotswap_adapter(model, str(tmp_path), "default")
    assert model.base_model.model[0].scaling["default"] == 4
    needed(model.peft_config["default"].lora_alpha == 2, "lora.combine.hotswap puts the slot's settings right")


def test_peft_makes_nan_of_a_row_of_zeros_with_dora():
    model = adapted(r=2, use_dora=True).unload()
    model[0].weight.data[3] = 0
    from peft import LoraConfig, get_peft_model

    y = get_peft_model(model, LoraConfig(r=2, use_dora=True, target_modules=["0"]))(torch.ones(1, 8))
    needed(y[0, 3].isnan(), "lessons/12 says that PEFT's DoRA does, and variants.DoRA.ratio that it differs")


def test_peft_asks_the_hub_whether_the_vocabulary_grew(tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model
    from peft.utils import save_and_load

    asked = []
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda *a, **k: asked.append(a))
    base, _ = load_base()
    base.name_or_path = "somebody/somewhere"
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    needed(asked, "capstone and adapter_cache pass save_embedding_layers=False")


# --------------------------------------------------------------------------------------------------------------- TRL


def test_trl_has_no_tagged_template_for_smollm2():
    from trl.chat_template_utils import get_training_chat_template

    from tests.models.test_loading_small import ORIGINAL

    tokenizer = load_tokenizer()
    tokenizer.chat_template = ORIGINAL
    with needed_while_this_raises(ValueError, "smollm2.with_generation_tags: TRL knows the template"):
        get_training_chat_template(tokenizer)


def test_trl_makes_the_adapters_of_a_4_bit_base_bfloat16_for_fp16_too(tmp_path, monkeypatch):
    from datasets import Dataset

    from utils.train import sft
    from utils.train.recipes import recipe

    monkeypatch.setattr(sft, "widen_trainable", lambda model: 0)
    base, tokenizer = load_4bit()
    args = sft.sft_config(tmp_path, recipe("style", "tiny"))
    args.fp16 = True  # afterwards, so that accelerate doesn't look for a card
    says = [{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]}]
    trainer = sft.sft_trainer(
        base, tokenizer, Dataset.from_list(says * 8), args, peft_config=sft.lora_config(recipe("style", "tiny"))
    )
    dtypes = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    needed(dtypes == {torch.bfloat16}, "device.widen_trainable: TRL leaves float32 adapters for fp16 training")


# ------------------------------------------------------------------------------------------------------ transformers


@pytest.fixture(scope="module")
def from_gguf(tmp_path_factory):
    """The tokenizer that transformers makes of a GGUF file as llama.cpp writes it, and the model's configuration."""
    from transformers import AutoTokenizer

    from tests.models.test_loading_small import original_model, write_gguf

    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "model.gguf", original_model(), None)
    return AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")


def test_transformers_does_not_split_the_digits_of_a_gguf_of_smollm(from_gguf):
    pieces = [text for text, _ in from_gguf.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12")]
    needed(pieces == ["12"], "smollm2._split_digits")


def test_transformers_warns_of_the_dtype_that_it_dequantizes_to(caplog):
    from transformers.utils.logging import warning_once

    warning_once.cache_clear()  # another test may have had it said already
    base, _ = load_4bit()
    logger = logging.getLogger("transformers")
    propagates, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):
            base.dequantize()
    finally:
        logger.propagate = propagates
    needed("dequantized" in caplog.text, "merging.dequantized silences transformers' logger")


# ----------------------------------------------------------------------------------------------------------- PyTorch


def test_pytorch_has_no_public_name_for_freeing_cublas_workspaces():
    names = [name for name in dir(torch.cuda) + dir(torch.cuda.memory) if "cublas" in name.lower()]
    needed(not names, f"gpu_step.free calls torch._C._cuda_clearCublasWorkspaces; public now: {names}")


def test_pytorch_gives_all_storages_of_meta_tensors_one_address():
    first, second = (torch.empty(3, device="meta").untyped_storage() for _ in range(2))
    needed(first.data_ptr() == second.data_ptr(), "peak and activations know a storage by its private _cdata")
    assert first._cdata != second._cdata


def test_a_parameter_is_found_slowly_by_its_public_name():
    """nn.Module has no attribute for it, so Python fails first and asks __getattr__, for each of thousands of calls."""
    needed("weight" not in nn.Linear(2, 2).__dict__, "fused.falls_back reads base._parameters")


def test_fake_tensors_have_no_public_home():
    import torch._subclasses.fake_tensor as private

    public = [m for m in (torch, torch.testing, torch.utils) if hasattr(m, "FakeTensorMode")]
    needed(not public, f"flops and tests/models/other_device.py import {private.__name__}; public now: {public}")


# --------------------------------------------------------------------------------------------------------- llama.cpp


def test_llama_cpp_takes_a_prompts_state_for_the_same_under_another_scale(tmp_path):
    """Its server keeps prompts' states in main memory, and doesn't ask which adapter they were computed with."""
    from utils.export import LlamaCpp, to_gguf
    from utils.models import TINY_DIR
    from utils.tinyworld import task_examples
    from utils.train.adapter_cache import adapter_dir

    pytest.importorskip("xllamacpp")
    base = to_gguf(TINY_DIR, tmp_path / "base.gguf")
    style = to_gguf(adapter_dir("style"), tmp_path / "style.gguf")
    rows = task_examples("style", "test", 20)

    def right(cache_mib: int) -> int:
        """After the same prompts with scale 0, how many are right with scale 1."""
        with LlamaCpp(base, {"style": style}, cache_mib=cache_mib) as server, server.client() as client:
            for scale in (0.0, 1.0):
                said = [
                    client.chat.completions.create(
                        model="base", temperature=0, max_tokens=40, messages=[{"role": "user", "content": row.prompt}],
                        extra_body={"lora": server.lora("style", scale)},
                    ).choices[0].message.content
                    for row in rows
                ]  # fmt: skip
        return sum(text.strip() == row.answer for text, row in zip(said, rows, strict=True))

    assert right(0) == len(rows)
    needed(right(8192) < len(rows), "LlamaCpp's cache_mib is 0")


def test_llama_cpp_waits_for_ever_when_it_is_freed_before_its_loop_runs(tmp_path):
    from utils.export import to_gguf
    from utils.models import TINY_DIR

    pytest.importorskip("xllamacpp")
    base = to_gguf(TINY_DIR, tmp_path / "base.gguf")
    code = f"""
import xllamacpp
for _ in range(60):
    p = xllamacpp.CommonParams()
    p.verbosity, p.model.path, p.n_ctx, p.warmup = -1, {str(base)!r}, 64, False
    server = xllamacpp.Server(p)
    del server
"""
    try:
        subprocess.run([sys.executable, "-c", code], check=True, timeout=15)
    except subprocess.TimeoutExpired:
        return
    needed(False, "LlamaCpp asks its server once before it is handed out")
