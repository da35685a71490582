"""Which modules of a model LoRA should go on: find them, propose them for any architecture, check somebody's list.

The linear layers of a transformer have other names in every architecture. :func:`propose_targets` therefore looks at
the model, not at a table: it takes the linear layers inside the repeated blocks and sorts them into attention and MLP.
:func:`check_targets` finds what PEFT lets pass, a name that matches nothing beside one that matches something.
:func:`tiny_random` makes a small random model of each architecture, to try both on. :func:`find_targets` reads the
list that the course's own :func:`utils.lora.layer.inject` is given, and refuses more than PEFT does.

Attributes:
    ALL_LINEAR: As a value of `target_modules`: every linear layer but the output head.
    ARCHITECTURES: The architectures that :func:`tiny_random` makes: language models without experts.
    MIXED: Those that it makes besides: mixtures of experts, and Llava, which reads pictures too.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ALL_LINEAR = "all-linear"
ARCHITECTURES = (
    "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Phi", "Phi-3", "GPT-2", "GPT-NeoX", "BLOOM", "OPT", "Falcon", "T5",
)  # fmt: skip
MIXED = ("Mixtral", "Qwen3-MoE", "Qwen2-MoE", "gpt-oss", "Llava")

_WIDTH, _HEADS, _BLOCKS, _WORDS = 32, 4, 2, 100
_PASSED_BY = ("x_proj", "dt_proj", "out_proj")  # PEFT refuses out_proj alone, by the model's type
_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")  # where PEFT refuses out_proj, by model_type
_OTHER_INPUTS = ("pixel_values", "pixel_values_videos", "input_features", "input_values")  # pictures, films, sound
_OTHER_CONFIGS = ("vision_config", "audio_config")  # what a model of text and more calls its towers' settings


class Proposal(NamedTuple):
    """The linear layers in a model's repeated blocks, as names for LoraConfig's `target_modules`.

    Each name is the shortest end of a module's name that means only modules of its own group; where no end does, the
    full names are listed. ``LoraConfig(r=16, **propose_targets(model).fields)`` is all of it; :attr:`targets` alone is
    not where a model has experts or reads pictures.
    """

    attention: list[str]
    """Projections inside attention."""
    mlp: list[str]
    """Layers that widen the block's state and bring it back to its width."""
    other: list[str]
    """Linear layers in the blocks that are neither, such as a state-space layer's or a mixture's gate."""
    conv1d: bool
    """Whether a weight is stored as (in, out), in transformers' Conv1D: set LoraConfig's `fan_in_fan_out`."""
    parameters: list[str] = []  # noqa: RUF012
    """Weights of experts that are three-dimensional parameters and no modules: for LoraConfig's `target_parameters`."""
    towers: list[str] = []  # noqa: RUF012
    """Parts that read pictures, films or sound. Names in the groups may match in them too: for `exclude_modules`."""

    @property
    def fields(self) -> dict[str, Any]:
        """What LoraConfig has to be given to train what was proposed and nothing else; defaults are left out."""
        modules = [*self.attention, *self.mlp, *self.other]
        return {
            "target_modules": modules,
            **({"target_parameters": self.parameters} if self.parameters else {}),
            **({"exclude_modules": rf"({'|'.join(map(re.escape, self.towers))})\..*"} if self.towers else {}),
            **({"fan_in_fan_out": True} if self.conv1d else {}),
        }

    @property
    def targets(self) -> list[str]:
        """All three groups of modules: what ``target_modules`` takes. Warns where that alone trains less or more than
        was proposed: it can't name experts that are parameters, nor spare a vision tower.
        """
        said = []
        if self.parameters:
            said.append(
                f"the experts {', '.join(self.parameters)} are parameters, which no name in target_modules reaches"
            )
        if self.towers:
            said.append(f"layers of {', '.join(self.towers)}, which reads no text, match these names too")
        if said:
            warnings.warn(f"{'; '.join(said)}: give LoraConfig the proposal's fields", stacklevel=2)
        return [*self.attention, *self.mlp, *self.other]


# ------------------------------------------------------------------------------------------------------- tiny models


def tiny_random(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A random model of one of :data:`ARCHITECTURES` or :data:`MIXED`: 2 blocks of width 32, on the CPU in float32.

    Nothing is downloaded and the global random state stays as it was. T5 is an encoder and a decoder
    (AutoModelForSeq2SeqLM), Llava a vision tower, a projector and a language model (AutoModelForImageTextToText), the
    others continue text (AutoModelForCausalLM). A mixture has 4 experts in each block, and two work on a token. Raises
    ValueError for another name.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    config = _tiny_config(architecture)
    if architecture == "Llava":
        maker = AutoModelForImageTextToText
    else:
        maker = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return maker.from_config(config).eval()


def _tiny_config(architecture: str) -> PretrainedConfig:
    import transformers as t

    if architecture not in ARCHITECTURES + MIXED:
        near = difflib.get_close_matches(architecture, ARCHITECTURES + MIXED, n=1)
        raise ValueError(
            f"there is no tiny model of {architecture!r} here"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" Choose one of {', '.join(ARCHITECTURES + MIXED)}, or make your own from its configuration class"
        )
    modern: dict[str, Any] = dict(
        vocab_size=_WORDS, hidden_size=_WIDTH, intermediate_size=2 * _WIDTH, num_hidden_layers=_BLOCKS,
        num_attention_heads=_HEADS, num_key_value_heads=_HEADS // 2, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    classic: dict[str, Any] = dict(
        vocab_size=_WORDS, hidden_size=_WIDTH, num_hidden_layers=_BLOCKS, num_attention_heads=_HEADS,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    made: dict[str, tuple[type, dict]] = {
        "Llama": (t.LlamaConfig, modern),
        "Mistral": (t.MistralConfig, modern),
        "Qwen2": (t.Qwen2Config, modern),
        "Qwen3": (t.Qwen3Config, modern | {"head_dim": _WIDTH // _HEADS}),
        "Gemma": (t.GemmaConfig, modern | {"head_dim": _WIDTH // _HEADS}),
        "Phi": (t.PhiConfig, modern),
        "Phi-3": (t.Phi3Config, modern),
        "GPT-2": (t.GPT2Config, classic),
        "GPT-NeoX": (t.GPTNeoXConfig, classic | {"intermediate_size": 2 * _WIDTH}),
        "BLOOM": (t.BloomConfig, classic),
        "OPT": (t.OPTConfig, classic | {"ffn_dim": 2 * _WIDTH, "word_embed_proj_dim": _WIDTH}),
        "Falcon": (t.FalconConfig, classic),
        "T5": (t.T5Config, dict(
            vocab_size=_WORDS, d_model=_WIDTH, d_kv=_WIDTH // _HEADS, d_ff=2 * _WIDTH, num_layers=_BLOCKS,
            num_heads=_HEADS, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )),
        "Mixtral": (t.MixtralConfig, modern | {"num_local_experts": 4, "num_experts_per_tok": 2}),
        "Qwen3-MoE": (t.Qwen3MoeConfig, modern | {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 2 * _WIDTH,
            "head_dim": _WIDTH // _HEADS,
        }),
        "Qwen2-MoE": (t.Qwen2MoeConfig, modern | {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 2 * _WIDTH,
            "shared_expert_intermediate_size": 2 * _WIDTH,
        }),
        "gpt-oss": (t.GptOssConfig, modern | {
            "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": _WIDTH // _HEADS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        }),
        "Llava": (t.LlavaConfig, dict(
            text_config=t.LlamaConfig(**modern),
            vision_config=t.CLIPVisionConfig(
                hidden_size=_WIDTH, intermediate_size=2 * _WIDTH, num_hidden_layers=_BLOCKS,
                num_attention_heads=_HEADS, image_size=8, patch_size=4,
            ),
        )),
    }  # fmt: skip
    kind, settings = made[architecture]
    return kind(**settings)


def upcycled(model: PreTrainedModel, experts: int = 4) -> PreTrainedModel:
    """A mixture of experts made of a dense Llama: a Mixtral whose experts begin as copies of the Llama's MLP.

    Two experts work on each token. Mixtral's router gives them weights that add up to 1, so as long as the experts are
    equal the mixture computes what the Llama does, whatever the router says; the router is random, from seed 0. This
    is how mixtures are often begun (https://arxiv.org/abs/2212.05055). The model itself isn't changed. Raises
    ValueError for a model that is no Llama.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    given = model.config
    if given.model_type != "llama":
        raise ValueError(f"only a Llama is upcycled here, and this is a {given.model_type}")
    same = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings bos_token_id eos_token_id "
        "pad_token_id"
    ).split()
    config = MixtralConfig(
        **{key: getattr(given, key) for key in same}, num_local_experts=experts, num_experts_per_tok=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixture = MixtralForCausalLM(config).eval()
    cast(nn.Module, mixture).to(device=model.device, dtype=model.dtype)
    weights = dict(model.state_dict())
    for i in range(given.num_hidden_layers):
        mlp = f"model.layers.{i}.mlp."
        gate, up, down = (weights.pop(f"{mlp}{name}_proj.weight") for name in ("gate", "up", "down"))
        weights[f"{mlp}experts.gate_up_proj"] = torch.cat([gate, up]).repeat(experts, 1, 1)
        weights[f"{mlp}experts.down_proj"] = down.repeat(experts, 1, 1)
    mixture.load_state_dict(weights, strict=False)  # all but the routers
    return mixture


# ----------------------------------------------------------------------------------- finding, for the course's own LoRA


def output_head(model: nn.Module) -> nn.Module | None:
    """The model's output head, where the model says which module that is, as transformers' language models do; of a
    sequence classifier its score, which PEFT leaves out of "all-linear" for ``task_type="SEQ_CLS"``.
    """
    ask = getattr(model, "get_output_embeddings", None)
    head = None if ask is None else ask()
    if head is None and "ForSequenceClassification" in type(model).__name__:
        return getattr(model, "score", None) or getattr(model, "classifier", None)
    return head


def _entries(target_modules: Collection[str]) -> list[str]:
    """The entries of a list of names. Raises TypeError for anything else, or an entry that is no text."""
    if not isinstance(target_modules, Collection):
        raise TypeError(f"target_modules is a list of names, such as ['q_proj'], not {target_modules!r}")
    for target in target_modules:
        if not isinstance(target, str):
            raise TypeError(f"target_modules holds {target!r}; its entries are names, such as 'q_proj'")
    return list(target_modules)


# --------------------------------------------------------------- weights that are no linear layers, as PEFT adapts them


class Converted(NamedTuple):
    """`target_modules` as PEFT reads it for a mixture of experts.

    modules: what it still means as modules. parameters: the weights that PEFT adapts beside or instead of modules, by
    their full names, each with the number that its rank is multiplied by (2 where two matrices were fused into one).
    """

    modules: str | list[str]
    parameters: dict[str, int]


def converted(model: nn.Module, target_modules: str | Collection[str]) -> Converted:
    """`target_modules` after PEFT's conversion for models whose experts became parameters.

    transformers 5 keeps the experts of Mixtral, Qwen3-MoE, DeepSeek-V3 and their like in three-dimensional weights, and
    the router in a module that isn't linear. PEFT still reads ``gate_proj``, ``w1``, ``gate``, and "all-linear", as
    meaning them. For other models nothing is converted. Raises ValueError where PEFT does: for one of two names whose
    matrices were fused.
    """
    given = target_modules if isinstance(target_modules, str) else _entries(target_modules)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind is None:
        return Converted(given, {})
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if get_checkpoint_conversion_mapping(kind) is None:
        return Converted(given, {})
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(r=1, target_modules=given)
    convert_peft_config_for_transformers(config, model, None)
    wanted = sorted(config.target_parameters or [])
    if not wanted:
        return Converted(given, {})
    ranks = {
        name: r
        for name, _ in model.named_parameters()
        for pattern, r in (config.rank_pattern or {}).items()
        if re.fullmatch(pattern, name)
    }
    names = [name for name, _ in model.named_parameters() if any(is_named(target, name) for target in wanted)]
    return Converted(sorted(config.target_modules or []), {name: ranks.get(name, 1) for name in names})


def _refuse_parameters(model: nn.Module, target_modules: str | Collection[str]) -> None:
    """Raise ValueError for targets that PEFT adapts through parameters, which no layer of ours stands beside."""
    modules, parameters = converted(model, target_modules)
    if parameters:
        linear = sorted(
            {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        )
        said = [target for target in [target_modules] if isinstance(target, str)] or sorted(
            {*target_modules} - {*modules}
        )
        raise ValueError(
            f"{', '.join(map(repr, said))} means in this {type(model).__name__} weights of the experts and the router "
            f"too, {len(parameters)} parameters such as {next(iter(parameters))!r}, and LoRA here stands beside linear "
            f"layers only. Take names among {', '.join(linear)}, or train with PEFT, which adapts such weights by "
            "LoraConfig's target_parameters"
        )


def _tell_what_all_linear_means(model: nn.Module) -> None:
    """Warn of experts that "all-linear" leaves out, and of another modality's tower that it takes in."""
    experts = expert_parameters(model)
    if experts:
        warnings.warn(
            f'"all-linear" leaves out the experts of this {type(model).__name__}, {len(experts)} weights such as '
            f"{experts[0]!r} that are no linear layers, as PEFT does: name them in LoraConfig's target_parameters to "
            "train them",
            stacklevel=3,
        )
    _tell_towers(model)


def _towers(model: nn.Module) -> list[str]:
    """The outermost parts of a model of text that read something else, and have linear layers: full names."""
    found: list[str] = []
    if getattr(model, "main_input_name", "input_ids") in _OTHER_INPUTS:
        return found  # a speech model's encoder is no tower beside the model
    config = getattr(model, "config", None)
    others = tuple(type(getattr(config, key)) for key in _OTHER_CONFIGS if getattr(config, key, None) is not None)
    for name, module in model.named_modules():
        reads = getattr(module, "main_input_name", "input_ids")  # Qwen2.5-VL's tower says input_ids
        if (
            name
            and (reads in _OTHER_INPUTS or isinstance(getattr(module, "config", None), others))
            and any(is_linear(inner) for inner in module.modules())
            and not any(name.startswith(f"{outer}.") for outer in found)
        ):
            found.append(name)
    return found


def _tell_towers(model: nn.Module) -> None:
    towers = _towers(model)
    if towers:
        warnings.warn(
            f"the linear layers of {towers[0]!r}, which reads no text, are among these targets, as they are in PEFT's "
            f"all-linear: to leave them out give LoraConfig exclude_modules='.*{towers[0].rpartition('.')[2]}.*', or "
            "name the language model's layers",
            stacklevel=4,
        )


def find_targets(model: nn.Module, target_modules: Sequence[str] | str) -> list[str]:
    """The full names of the linear layers that `target_modules` means, in the model's order.

    A name such as ``"q_proj"`` means every module that is called so, in any block, and
    ``"layers.0.self_attn.q_proj"`` one of them; ``"all-linear"`` means every linear layer but the output head. Raises
    ValueError for a name that matches nothing (PEFT ignores it beside one that does) or that PEFT reads as weights of
    experts (:func:`converted`), TypeError for a module that is not linear or an entry that is no text, and what
    :func:`refuse_unfit` raises, as for a layer whose weight is tied to another module's. Warns when "all-linear" leaves
    experts out or takes a vision tower in, both as PEFT does.
    """
    if not isinstance(target_modules, str):
        target_modules = _entries(target_modules)
    modules = dict(model.named_modules())
    head = output_head(model)
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear) and module is not head]
    if isinstance(target_modules, str):
        if target_modules != ALL_LINEAR:
            raise ValueError(f"target_modules is the text {target_modules!r}: pass a list of names, or {ALL_LINEAR!r}")
        if not linear:
            raise ValueError(f"this {type(model).__name__} has no linear layer to target")
        _refuse_parameters(model, target_modules)
        refuse_unfit(model, linear)
        _tell_what_all_linear_means(model)
        return linear
    if not target_modules:
        raise ValueError(f"target_modules is empty: name at least one linear layer, or pass {ALL_LINEAR!r}")
    _refuse_parameters(model, target_modules)
    found: set[str] = set()
    for target in target_modules:
        matches = [name for name in modules if is_named(target, name)]
        if not target or not matches:
            known = sorted({name.rpartition(".")[2] for name in linear})
            close = difflib.get_close_matches(target, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"target {target!r} matches no module.{hint} The linear layers here are called {', '.join(known)}"
            )
        for name in matches:
            if not isinstance(modules[name], nn.Linear):
                raise TypeError(
                    f"target {target!r} is a {type(modules[name]).__name__} ({name}); LoRA here wraps nn.Linear only"
                )
        found.update(matches)
    names = [name for name in modules if name in found]
    refuse_unfit(model, names)
    return names


def refuse_unfit(model: nn.Module, names: Sequence[str]) -> None:
    """Raise ValueError when one of the linear layers `names` is none for LoRA: its weight is another module's too, or
    the model computes with the weight and passes the layer by.

    Nothing is changed. A layer that has LoRA already is asked about by its base layer's name.
    """
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for _, parameter in module.named_parameters(recurse=False):
            users.setdefault(id(parameter), []).append(name)
    for name in names:
        others = [user for user in users.get(id(model.get_submodule(name).weight), ()) if user != name]
        if others:
            raise ValueError(
                f"the weight of {name!r} is shared with {others[0]!r}, which a merge would change too: leave {name!r} "
                "out of the targets (an adapter that has it must be trained anew), or give it a weight of its own "
                f"before that: head = model.get_submodule({name!r}); head.weight = torch.nn.Parameter(head.weight"
                ".detach().clone()); model.config.tie_word_embeddings = False"
            )
        if _is_passed_by(model, name):
            around = model.get_submodule(name.rpartition(".")[0])
            raise ValueError(
                f"{name!r} is in a state-space layer, a {type(around).__name__}, whose kernels "
                "take its weight and don't call it, so that LoRA beside it would do nothing: leave "
                f"{', '.join(_PASSED_BY)} of these layers out of the targets; in_proj is called"
            )


def _is_passed_by(model: nn.Module, name: str) -> bool:
    parent, _, own = name.rpartition(".")
    return own in _PASSED_BY and hasattr(model.get_submodule(parent), "A_log")


# --------------------------------------------------------------------------------------------------------- proposing


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D, a linear layer whose weight is stored as (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def is_linear(module: nn.Module) -> bool:
    """Whether LoRA's two matrices stand beside this as beside a linear layer: nn.Linear (8- and 4-bit ones too) or
    Conv1D.
    """
    return isinstance(module, nn.Linear) or is_conv1d(module)


def propose_targets(model: nn.Module) -> Proposal:
    """The linear layers inside the model's repeated blocks, sorted, whatever they are called.

    Blocks are the entries of the outermost ``nn.ModuleList``s; what stands outside them, embeddings and the head, is
    left out. A layer is *attention* when a module around it in the block has "att" in its class's or its own name, as
    all of transformers' do. It is *MLP* when another layer of the block outside attention undoes its change of width,
    and no convolution stands beside it. The rest is *other*. What a state-space layer's
    kernels pass by is left out, and so are the blocks of a vision tower, which the proposal names. Experts that are
    parameters stand in the proposal's `parameters`; its `fields` are all that LoraConfig needs.

    Raises ValueError when the model has an adapter already or no blocks with linear layers.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            "this model has a PEFT adapter already, so its linear layers are wrapped: propose for the base, before "
            "get_peft_model"
        )
    groups: dict[str, str] = {}
    experts: list[str] = []
    towers = _towers(model)
    for prefix, block in _blocks(model):
        if any(prefix.startswith(f"{tower}.") for tower in towers):
            continue
        groups |= _sorted_layers(prefix, block)
        experts += expert_parameters(block)
    if not groups:
        raise ValueError(
            f"{type(model).__name__} has no nn.ModuleList of blocks with linear layers: name its layers yourself, "
            'or use target_modules="all-linear"'
        )
    groups = {name: group for name, group in groups.items() if not _is_passed_by(model, name)}
    every = [
        name for name, _ in model.named_modules() if not any(f"{name}.".startswith(f"{tower}.") for tower in towers)
    ]
    named: dict[str, list[str]] = {"attention": [], "mlp": [], "other": []}
    for name, group in groups.items():
        target = _shortest(name, group, groups, every)
        if target not in named[group]:
            named[group].append(target)
    return Proposal(
        **named,
        conv1d=any(is_conv1d(model.get_submodule(name)) for name in groups),
        parameters=list(dict.fromkeys(experts)),
        towers=towers,
    )


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The entries of the outermost ModuleLists that hold linear layers, with their names."""
    lists: list[str] = []
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in lists):
            continue
        lists.append(name)
        found += [
            (f"{name}.{i}" if name else str(i), block)
            for i, block in enumerate(module)
            if any(is_linear(inner) for inner in block.modules())
        ]
    return found


def _sorted_layers(prefix: str, block: nn.Module) -> dict[str, str]:
    """Each linear layer of a block, by its full name: "attention", "mlp" or "other"."""
    modules = dict(block.named_modules())
    layers = {name: module for name, module in modules.items() if is_linear(module)}

    def around(name: str) -> list[str]:
        parts = name.split(".")[:-1]
        return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]

    def attends(name: str) -> bool:
        names = [f"{outer.rpartition('.')[2]} {type(modules[outer]).__name__}" for outer in around(name)]
        return "att" in " ".join(names).lower()

    def convolves(name: str) -> bool:
        return any(isinstance(m, nn.Conv1d) for m in modules[name.rpartition(".")[0]].children())

    kinds = {name: "attention" if attends(name) else "other" for name in layers}
    rest = [name for name, kind in kinds.items() if kind == "other" and not convolves(name)]
    for name in rest:
        if any(_undoes(_shape(layers[name]), _shape(layers[other])) for other in rest if other != name):
            kinds[name] = "mlp"
    return {f"{prefix}.{name}": kind for name, kind in kinds.items()}


def expert_parameters(block: nn.Module) -> list[str]:
    """The names, within the block or model, of three-dimensional parameters of modules that aren't PyTorch's own."""
    return [
        f"{name}.{weight}" if name else weight
        for name, module in block.named_modules()
        if not type(module).__module__.startswith("torch.nn.")
        for weight, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]


def _shape(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer; the attributes of nn.Linear are right for 4-bit layers as well."""
    if is_conv1d(layer):
        d_in, d_out = layer.get_parameter("weight").shape
        return d_in, d_out
    linear = cast(nn.Linear, layer)
    return linear.in_features, linear.out_features


def _undoes(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one layer brings back the other's width; gate and up may be fused into one of twice the width."""
    (a, b), (c, d) = one, other
    return (a == d and b in (c, 2 * c)) or (c == b and d in (a, 2 * a))


def _shortest(name: str, group: str, groups: dict[str, str], every: Sequence[str]) -> str:
    """The shortest end of `name` that matches modules of its group only, without a block's number; else all of it."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        if parts[-count].isdigit():
            break
        end = ".".join(parts[-count:])
        if all(groups.get(n) == group for n in every if is_named(end, n)):
            return end
    return name


# ---------------------------------------------------------------------------------------------------------- checking


def is_named(target: str, module: str) -> bool:
    """PEFT's rule for an entry of a list: the whole name, or its end from a dot on."""
    return module == target or module.endswith(f".{target}")


def match_targets(model: nn.Module, target_modules: str | Collection[str]) -> dict[str, list[str]]:
    """What each entry of `target_modules` matches by PEFT's rules, in the model's order.

    An entry of a list means the modules whose name is or ends with it. A string is one regular expression that has to
    match a module's whole name; ``"all-linear"`` means every linear layer but the output head. Modules of every kind
    are listed, also those that LoRA can't wrap; behind them, or in their place, the parameters that PEFT adapts in a
    mixture of experts (:func:`converted`). Raises TypeError for anything but text, ValueError for an expression that
    can't be compiled, and what :func:`converted` raises.
    """
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(target_modules, str) and target_modules.lower() != ALL_LINEAR:
        try:
            pattern = re.compile(target_modules)
        except re.error as error:
            raise ValueError(
                f"target_modules={target_modules!r} is a string, so it is read as a regular expression, and it isn't "
                f"one: {error}"
            ) from error
        found = [name for name in names if pattern.fullmatch(name)]
    elif isinstance(target_modules, str):
        head = output_head(model)
        found = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    modules, parameters = converted(model, target_modules)
    if isinstance(target_modules, str):
        if parameters:
            found = [name for name in names if any(is_named(target, name) for target in modules)]
        return {target_modules: [*found, *parameters]}
    return {
        target: [name for name in names if is_named(target, name)] if target in modules else list(parameters)
        for target in _entries(target_modules)
    }


def check_targets(model: nn.Module, target_modules: str | Collection[str]) -> list[str]:
    """The names of the modules that `target_modules` means, in the model's order, when every entry means something;
    behind them those of the parameters that PEFT adapts in a mixture of experts.

    PEFT raises only when nothing at all matches. This raises ValueError when one entry matches nothing, and says which
    names are near; when an entry matches a module that isn't linear (PEFT takes embeddings and convolutions too) or
    Mamba's out_proj (PEFT refuses it too); and when there are no entries. Raises TypeError as :func:`match_targets`
    does.
    """
    matches = match_targets(model, target_modules)
    if not matches:
        raise ValueError("target_modules is empty: name at least one layer, such as 'q_proj'")
    refuse_lost(model, target_modules)
    found = {name for modules in matches.values() for name in modules}
    order = [name for name, _ in model.named_modules() if name in found]
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in _MAMBA and (refused := [name for name in order if is_named("out_proj", name)]):
        raise ValueError(
            f"target_modules means {refused[0]!r}, and PEFT refuses out_proj in a {kind} model, whose kernels take the "
            "weight and never call the layer: name other layers, such as ['in_proj']"
        )
    for name in order:
        module = model.get_submodule(name)
        if not is_linear(module):
            raise ValueError(
                f"target_modules means {name!r}, which is a {type(module).__name__} and no linear layer: name the "
                "layers inside it, by their own names"
            )
    return [*order, *(name for name, _ in model.named_parameters() if name in found)]


def refuse_lost(model: nn.Module, target_modules: str | Collection[str]) -> None:
    """Raise ValueError when an entry matches nothing, where PEFT trains the others and says nothing: each such entry,
    with the names that are near. Raises what :func:`match_targets` raises.
    """
    lost = [target for target, modules in match_targets(model, target_modules).items() if not modules]
    if lost:
        raise ValueError(" ".join(_advice(model, target, isinstance(target_modules, str)) for target in lost))


def _advice(model: nn.Module, target: str, expression: bool) -> str:
    """What to say about an entry that matches nothing."""
    linear = match_targets(model, ALL_LINEAR)[ALL_LINEAR]
    ends = sorted({name.rpartition(".")[2] for name in linear})
    known = f"The linear layers of this {type(model).__name__} are called {', '.join(ends)}."
    if expression:
        if any(is_named(target, name) for name, _ in model.named_modules()):
            return (
                f"target_modules={target!r} is a string, so it has to match a module's whole name, and no name is "
                f"that short: write [{target!r}]."
            )
        return f"the expression {target!r} matches no module's whole name, such as {linear[0]!r}. {known}"
    if re.search(r"[*|()\[\]^$\\]", target):
        return (
            f"the target {target!r} matches no module: in a list it is a name and no regular expression. For an "
            "expression pass one string without a list."
        )
    last = target.rpartition(".")[2]
    if last in ends and "." in target:
        example = next(name for name in linear if name.endswith(last))
        return f"the target {target!r} matches no module: a layer called {last!r} is there, as {example!r}."
    near = difflib.get_close_matches(last, ends, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return f"the target {target!r} matches no module.{hint} {known}"
