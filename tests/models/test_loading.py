"""Where models come from, and what is said when they can't."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from utils import models
from utils.evaluate import metrics
from utils.models import ModelUnavailable, loading
from utils.models import device as machine
from utils.models import errors as model_errors
from utils.models.configs import SHAPES
from utils.tinyworld import TASKS
from utils.train.adapter_cache import adapter_dir

torch.set_num_threads(1)

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("COURSE_PROFILE", "COURSE_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def small_on_cpu(monkeypatch):
    """The profile small on a machine without a GPU."""
    monkeypatch.setenv("COURSE_PROFILE", "small")
    monkeypatch.setattr(machine, "best_device", lambda: CPU)


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Fails the test when a file of a model is asked for."""
    import transformers

    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda *_, **__: pytest.fail("work began"))


# ------------------------------------------------------------------------------------------------ profile and device


@pytest.mark.parametrize("value", [None, "", "tiny"])
def test_the_profile_is_tiny_unless_told_otherwise(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("COURSE_PROFILE", value)
    assert models.profile() == "tiny"


@pytest.mark.parametrize("name", ["tiny", "small", "7b"])
def test_each_profile_is_chosen_by_its_name(monkeypatch, name):
    monkeypatch.setenv("COURSE_PROFILE", name)
    assert models.profile() == name in models.PROFILES


@pytest.mark.parametrize("function", ["profile", "load_base", "load_tokenizer", "load_4bit", "compute_dtype"])
def test_an_unknown_profile_is_named_with_the_known_ones(monkeypatch, nothing_is_loaded, function):
    monkeypatch.setenv("COURSE_PROFILE", "7B")
    with pytest.raises(ValueError, match="COURSE_PROFILE is '7B'.*tiny, small, 7b"):
        getattr(models, function)()


def test_missing_assets_are_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "TINY_DIR", tmp_path / "tiny-llama")
    with pytest.raises(FileNotFoundError, match="missing from .*tiny-llama.*git clone.*tools/train_tiny_base.py"):
        models.load_base()


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert models.best_device() == torch.device(device)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_own_adapter_folder(task):
    assert adapter_dir(task) == models.ASSETS / "adapters" / task


@pytest.mark.parametrize("task", ["poetry", "", "../tiny-llama", "Style"])
def test_other_tasks_have_none(task):
    with pytest.raises(ValueError, match="no adapter for .*sentiment, translation, summarization, style"):
        adapter_dir(task)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_base_comes_in_the_dtype_that_was_asked_for(dtype):
    model, tokenizer = models.load_base(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize("name", ["tiny", "small", "7b"])
def test_the_tiny_model_comes_whatever_the_profile(monkeypatch, name):
    monkeypatch.setenv("COURSE_PROFILE", name)
    model, tokenizer = models.load_tiny()
    assert model.name_or_path == tokenizer.name_or_path == str(models.TINY_DIR)
    assert (model.dtype, model.device.type, model.training) == (torch.float32, "cpu", False)


def test_every_call_loads_afresh():
    first, second = models.load_base()[0], models.load_base()[0]
    with torch.no_grad():
        first.model.embed_tokens.weight.zero_()
    assert second.model.embed_tokens.weight.any()


@pytest.mark.parametrize("function", ["load_base", "load_tokenizer", "load_4bit"])
def test_loading_says_nothing(function):
    """A notebook would store whatever goes to the streams."""
    code = f"from utils import models; models.{function}()"
    done = subprocess.run([sys.executable, "-c", code], cwd=models.ASSETS.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("device", "hardware", "dtype"),
    [
        ("cpu", True, torch.float32),
        ("mps", True, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cuda:0", False, torch.float16),
        (None, True, torch.float32),  # the tiny profile stays on the CPU
    ],
)
def test_bf16_is_for_cards_that_have_it_in_hardware(monkeypatch, device, hardware, dtype):
    """A T4 emulates bf16, slowly, and torch says yes unless it is asked not to count that."""
    monkeypatch.setattr(machine, "best_device", lambda: CUDA)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: hardware or including_emulation
    )
    assert models.compute_dtype(device) == dtype


def test_the_tiny_model_stays_on_the_cpu_and_the_others_take_the_best_device(monkeypatch):
    monkeypatch.setattr(machine, "best_device", lambda: MPS)
    found = {}
    for name in models.PROFILES:
        monkeypatch.setenv("COURSE_PROFILE", name)
        found[name] = models.model_device()
    assert found == {"tiny": CPU, "small": MPS, "7b": MPS}


def test_a_profile_says_how_many_parameters_its_model_has():
    shipped = sum(p.numel() for p in models.load_base()[0].parameters())
    said = {name: models.PROFILES[name].parameters for name in ("tiny", "small")}
    assert said == pytest.approx({"tiny": shipped, "small": SHAPES["SmolLM2-135M"]}, rel=0.02)


def test_the_module_is_light():
    code = "import sys, utils.models; print([m for m in ('transformers', 'bitsandbytes', 'trl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=models.ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("name", ["/no/such/folder", "./gone", "owner/model", "not a model"])
def test_a_configuration_that_cant_be_had_is_told_by_whatever_named_it(name):
    for setting, other in (("base=", "COURSE_MODEL"), ("COURSE_MODEL", "base=")):
        with pytest.raises(ModelUnavailable, match=setting) as told:
            loading.load_config(name, setting=setting)
        assert other not in str(told.value)


# ----------------------------------------------------------------------------------- another model: COURSE_MODEL


@pytest.mark.parametrize("how", ["absolute", "from the repository", "from here", "~"])
def test_a_folder_takes_the_place_of_the_profiles_model(small_on_cpu, monkeypatch, tmp_path, how):
    shutil.copytree(models.TINY_DIR, tmp_path / "mine" / "model")
    folder = tmp_path / "mine" / "model"
    monkeypatch.chdir(tmp_path)  # notebooks run in another folder than the repository's
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    wanted = {"absolute": str(folder), "from the repository": "assets/tiny-llama", "from here": "mine/model"}
    monkeypatch.setenv("COURSE_MODEL", wanted.get(how, "~/mine/model"))
    model, tokenizer = models.load_base()
    monkeypatch.delenv("COURSE_PROFILE")
    tiny, its = models.load_base()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny.parameters(), strict=True))
    assert (model.dtype, model.training) == (torch.float32, False)
    assert tokenizer.chat_template == its.chat_template
    assert (tokenizer.pad_token, model.config.pad_token_id) == (its.pad_token, its.pad_token_id)


def test_the_tiny_profile_has_its_own_model_always(monkeypatch):
    monkeypatch.setenv("COURSE_MODEL", "/no/such/folder")
    assert models.load_base()[0].config.hidden_size == 192


def folder_of(tmp_path, *names, **config):
    for name in names:
        (tmp_path / name).touch()
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no config.json"),
        (["model.safetensors", "tokenizer.json"], "holds no config.json.*save_pretrained or `hf download`"),
        (["adapter_config.json", "adapter_model.safetensors"], "a LoRA adapter and no model.*adapter_config.json"),
        (["config.json", "pytorch_model.bin", "tokenizer.json"], "only as pytorch_model.bin, a pickle.*any code"),
        (["config.json", "consolidated.00.pth", "tokenizer.json"], "only as consolidated.00.pth, a pickle"),
        (["config.json", "tokenizer.json"], "no weights.*cut short"),
        (["config.json", "model.safetensors"], "no tokenizer.*tokenizer.save_pretrained"),
    ],
)
@pytest.mark.parametrize("function", ["load_base", "load_tokenizer", "load_4bit"])
def test_a_folder_that_is_no_model_is_told_at_once(
    small_on_cpu, nothing_is_loaded, monkeypatch, tmp_path, names, message, function
):
    monkeypatch.setenv("COURSE_MODEL", str(folder_of(tmp_path, *names)))
    with pytest.raises(ModelUnavailable, match=message) as raised:
        getattr(models, function)()
    assert str(tmp_path) in str(raised.value)


def test_weights_in_several_files_are_weights(tmp_path):
    names = ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "pytorch_model.bin")
    model_errors.check_folder(folder_of(tmp_path, *names))


@pytest.mark.parametrize("path", ["/no/such/folder", "./model", "~/no/such/folder"])
def test_a_path_without_a_folder_is_no_hub_id(small_on_cpu, nothing_is_loaded, monkeypatch, path):
    monkeypatch.setenv("COURSE_MODEL", path)
    with pytest.raises(ModelUnavailable, match="there is no folder .*COURSE_MODEL"):
        models.load_base()


def test_code_that_comes_with_a_model_is_not_run(small_on_cpu, monkeypatch, tmp_path):
    folder_of(
        tmp_path, "model.safetensors", "tokenizer.json", model_type="odd", auto_map={"AutoConfig": "odd.OddConfig"}
    )
    (tmp_path / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setenv("COURSE_MODEL", str(tmp_path))
    with pytest.raises(ModelUnavailable, match="never runs code that comes with a model"):
        models.load_base()
    assert not (tmp_path / "ran").exists()


def test_a_model_that_does_not_continue_text_is_refused(small_on_cpu, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_MODEL", str(folder_of(tmp_path, "model.safetensors", "tokenizer.json", model_type="t5")))
    with pytest.raises(ModelUnavailable, match="t5 model, which doesn't continue text"):
        models.load_base()


def changed_tokenizer(monkeypatch, tmp_path, **changes):
    folder = tmp_path / "changed"
    shutil.copytree(models.TINY_DIR, folder)
    for name, value in changes.items():
        if name == "chat_template":
            (folder / "chat_template.jinja").unlink()
            if value:
                (folder / "chat_template.jinja").write_text(value)
        else:
            settings = json.loads((folder / "tokenizer_config.json").read_text())
            (folder / "tokenizer_config.json").write_text(json.dumps(settings | {name: value}))
    monkeypatch.setenv("COURSE_MODEL", str(folder))


def test_a_model_that_was_not_taught_to_answer_is_refused(small_on_cpu, monkeypatch, tmp_path):
    changed_tokenizer(monkeypatch, tmp_path, chat_template=None)
    with pytest.raises(ModelUnavailable, match="no chat template.*Instruct"):
        models.load_tokenizer()


@pytest.mark.parametrize("pad", [None, "<|end|>"])
def test_padding_gets_a_token_of_its_own(small_on_cpu, monkeypatch, tmp_path, pad):
    changed_tokenizer(monkeypatch, tmp_path, pad_token=pad)
    model, tokenizer = models.load_base()
    assert (tokenizer.pad_token, tokenizer.eos_token, len(tokenizer)) == ("<|pad|>", "<|end|>", 1024)
    assert model.config.pad_token_id == model.model.embed_tokens.padding_idx == tokenizer.pad_token_id != 1


def test_a_template_that_trl_knows_gets_its_generation_tags(small_on_cpu, monkeypatch, tmp_path):
    from trl import chat_template_utils

    changed_tokenizer(monkeypatch, tmp_path, chat_template=chat_template_utils.qwen2_5_chat_template)
    assert models.load_tokenizer().chat_template == chat_template_utils.qwen2_5_training_chat_template


def test_a_template_that_nobody_tagged_stays(small_on_cpu, monkeypatch, tmp_path):
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    changed_tokenizer(monkeypatch, tmp_path, chat_template=template)
    assert models.load_tokenizer().chat_template == template


def test_the_tokenizer_alone_is_the_one_that_comes_with_the_model():
    alone, with_model = models.load_tokenizer(), models.load_base()[1]
    assert alone.get_vocab() == with_model.get_vocab() and alone.chat_template == with_model.chat_template


# ------------------------------------------------------------------------------------------------------------ 4-bit


def four_bit_layers(model):
    from bitsandbytes.nn import Linear4bit

    return {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit)}


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_the_linear_layers_come_in_4_bit_as_asked_for(double_quant, quant_type):
    from bitsandbytes.functional import dequantize_4bit

    model, tokenizer = models.load_4bit(double_quant=double_quant, quant_type=quant_type)
    layers = four_bit_layers(model)
    assert len(layers) == 4 * 7 and not model.training and model.device == CPU
    for layer in layers.values():
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize) == (quant_type, double_quant, 64)
        assert (layer.compute_dtype, layer.weight.dtype) == (torch.float32, torch.uint8)
    assert type(model.lm_head) is torch.nn.Linear
    assert {p.dtype for n, p in model.named_parameters() if "proj" not in n} == {torch.float32}
    assert len(tokenizer) == model.config.vocab_size
    whole = models.load_base()[0]
    for name, layer in layers.items():
        weight, state = whole.get_submodule(name).weight, layer.weight.quant_state
        error = dequantize_4bit(layer.weight.data, state) - weight
        assert 0.05 < error.norm() / weight.norm() < 0.15


def test_the_compute_dtype_is_the_one_asked_for():
    model, _ = models.load_4bit(compute_dtype=torch.bfloat16)
    assert {layer.compute_dtype for layer in four_bit_layers(model).values()} == {torch.bfloat16}
    assert model.model.norm.weight.dtype == model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert models.four_bit_config().bnb_4bit_compute_dtype == torch.float32
    assert models.four_bit_config(compute_dtype="bfloat16").bnb_4bit_compute_dtype == torch.bfloat16


def test_a_4_bit_model_that_was_evaluated_still_learns_and_is_the_same():
    """bitsandbytes repacks what it evaluates on a CPU with AVX512-BF16, and then no gradient comes through."""
    from peft import LoraConfig, get_peft_model

    ids = torch.arange(4, 60)[None]
    gradients, packed = [], []
    for evaluated in (False, True):
        model, tokenizer = models.load_4bit()
        if evaluated:
            metrics.complete(model, tokenizer, ["Please tell me a story."], 4)
        packed.append([layer.weight.data.clone() for layer in four_bit_layers(model).values()])
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).train()
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*packed, strict=True))
    assert len(gradients[0]) == 4 * 2
    for a, b in zip(*gradients, strict=True):
        assert b is not None and b.any() and torch.equal(a, b)


@pytest.mark.parametrize("kept, alive", [(False, 8), (True, 28)])
def test_of_28_adapters_8_get_a_gradient_after_an_evaluation_that_repacks(kept, alive):
    """Chapter 6's fold-out says that 20 of the tiny model's 28 go dead; with `keep_trainable` none does."""
    from bitsandbytes.functional import has_avx512bf16
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if not kept and not has_avx512bf16():
        pytest.skip("bitsandbytes repacks on a CPU with AVX512-BF16 alone")
    model = AutoModelForCausalLM.from_pretrained(
        models.ASSETS / "tiny-llama",
        quantization_config=models.four_bit_config(compute_dtype=torch.bfloat16),
        device_map={"": "cpu"},
    )
    if kept:
        models.keep_trainable(model)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = torch.randint(0, 1000, (2, 16))
    with torch.no_grad():
        model.eval()(input_ids=ids)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert len(gradients) == 28 and sum(g is not None and bool(g.any()) for g in gradients) == alive


def test_widths_that_bitsandbytes_unpacks_wrongly_on_a_cpu_are_refused():
    from bitsandbytes.nn import Linear4bit

    models.keep_trainable(torch.nn.Sequential(Linear4bit(128, 8).to("cpu")))
    with pytest.raises(ModelUnavailable, match="layer 0 has 96 inputs, no multiple of 64"):
        models.keep_trainable(torch.nn.Sequential(Linear4bit(96, 8).to("cpu")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quant_type": "int4"}, "quant_type is 'int4'.*nf4 and fp4"),
        ({"compute_dtype": torch.int8}, "compute_dtype is torch.int8"),
        ({"compute_dtype": "bf16"}, "compute_dtype is 'bf16'.*bfloat16"),
        ({"compute_dtype": 16}, "compute_dtype is 16"),
    ],
)
@pytest.mark.parametrize("function", ["four_bit_config", "load_4bit"])
def test_settings_that_make_no_4_bit_model_are_refused(nothing_is_loaded, function, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(models, function)(**arguments)


@pytest.mark.parametrize("function", ["four_bit_config", "load_4bit"])
def test_4_bit_without_bitsandbytes(monkeypatch, nothing_is_loaded, function):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match="isn't installed.*pip install bitsandbytes"):
        getattr(models, function)()


def test_4_bit_with_a_bitsandbytes_that_is_broken(monkeypatch, nothing_is_loaded):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    with pytest.raises(ModelUnavailable, match="can't be imported.*pip install --upgrade bitsandbytes"):
        models.load_4bit()


@pytest.mark.parametrize(("device", "known"), [(MPS, {"cuda", "cpu"}), (CPU, {"cuda"})])
def test_4_bit_on_a_device_that_bitsandbytes_has_no_code_for(monkeypatch, nothing_is_loaded, device, known):
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", known)
    monkeypatch.setattr(machine, "best_device", lambda: device)
    monkeypatch.setenv("COURSE_PROFILE", "small")
    with pytest.raises(ModelUnavailable, match=f"can't compute in 4-bit on {device}: it knows .*cuda.*load_base"):
        models.load_4bit()


# --------------------------------------------------------------------------------------------------------------- 7b


def a_card(monkeypatch, gigabytes):
    """A CUDA machine whose card has so many GB, or none for None. Nothing can be computed on it."""
    monkeypatch.setenv("COURSE_PROFILE", "7b")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gigabytes is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    card = SimpleNamespace(name="Test card", total_memory=int((gigabytes or 0) * 1e9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)


@pytest.mark.parametrize("function", ["load_base", "load_4bit"])
@pytest.mark.parametrize(
    ("gigabytes", "message"),
    [
        (None, "7b needs a CUDA GPU of 16 GB or more, and torch sees no CUDA GPU.*small or tiny"),
        (8.6, "7b in 4-bit needs a GPU with 15 GB, and this Test card has 8.6 GB.*small or tiny"),
    ],
)
def test_7b_is_refused_before_anything_is_fetched(monkeypatch, nothing_is_loaded, function, gigabytes, message):
    a_card(monkeypatch, gigabytes)
    with pytest.raises(ModelUnavailable, match=message):
        getattr(models, function)()


def test_7b_whole_needs_a_larger_card_than_in_4_bit(monkeypatch, nothing_is_loaded):
    a_card(monkeypatch, 15.6)
    with pytest.raises(ModelUnavailable, match="7b in bfloat16 needs a GPU with 21 GB.*or load_4bit"):
        models.load_base(torch.bfloat16)
    a_card(monkeypatch, 25)
    with pytest.raises(ModelUnavailable, match="7b in float32 needs a GPU with 41 GB"):
        models.load_base(torch.float32)


@pytest.mark.parametrize(
    ("gigabytes", "function", "arguments", "four_bit"),
    [(15.6, "load_base", (), True), (15.6, "load_4bit", (), True), (25, "load_base", (torch.bfloat16,), False)],
)
def test_7b_comes_in_4_bit_unless_a_dtype_is_asked_for(monkeypatch, gigabytes, function, arguments, four_bit):
    """Everything up to the weights: those of the tiny model stand in, and what they are asked for is looked at."""
    import transformers

    a_card(monkeypatch, gigabytes)
    monkeypatch.setenv("COURSE_MODEL", "assets/tiny-llama")
    asked = {}

    def stop(where, **settings):
        asked.update(settings)
        raise InterruptedError

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", stop)
    with pytest.raises(InterruptedError):
        getattr(models, function)(*arguments)
    assert (asked["dtype"], asked["device_map"]) == (torch.bfloat16, {"": CUDA})
    assert ("quantization_config" in asked) == four_bit
    assert asked["use_safetensors"] is True and asked["trust_remote_code"] is False


# ------------------------------------------------------------------------------------------- what the Hub's errors say


def raised_from(error, outer):
    outer.__cause__ = error
    return outer


def test_the_hubs_errors_are_found_beneath_those_of_transformers():
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    for error in (LocalEntryNotFoundError("not cached"), OfflineModeIsEnabled("offline")):
        for found in (error, raised_from(error, OSError("We couldn't connect")), raised_from(error, RuntimeError())):
            told = model_errors.explain(found, "owner/name", "Or else.")
            assert isinstance(told, ModelUnavailable) and str(told).endswith("HF_HOME to it. Or else.")


def test_a_download_that_breaks_off_can_be_tried_again():
    from huggingface_hub.errors import HfHubHTTPError

    error = HfHubHTTPError(
        "\n503 Service Unavailable\nmore", response=SimpleNamespace(status_code=503, headers={}, request=None)
    )
    told = model_errors.explain(raised_from(error, OSError("hidden")), "owner/name")
    assert "the Hub failed while owner/name was fetched (503 Service Unavailable)" in str(told)
    assert "try again" in str(told)


def test_other_errors_are_not_the_hubs():
    assert model_errors.explain(KeyError("x"), "owner/name") is None
    hidden = ValueError("own")
    hidden.__context__, hidden.__suppress_context__ = ConnectionError("unrelated"), True
    assert model_errors.explain(hidden, "owner/name") is None
