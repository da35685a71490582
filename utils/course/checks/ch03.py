"""Chapter 3's exercises: the layer, the search for its places, the labels, the merge, and the names in PEFT's file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.course.checks.references import ch03 as lesson
from utils.course.checks.registry import Mistake, Wrong, exercise
from utils.data.chat import IGNORED

# ------------------------------------------------------------------------------------------------------- the layer


def _judge_layer(Layer: Callable[..., Any]) -> None:
    base = nn.Linear(6, 4)
    weight, x = base.weight.detach().clone(), torch.randn(5, 6)
    layer = Layer(base, r=2, lora_alpha=6.0, lora_dropout=0.0)
    for name, shape in (("lora_A", (2, 6)), ("lora_B", (4, 2))):
        if not isinstance(getattr(layer, name, None), nn.Parameter):
            raise Wrong(f"the layer has no nn.Parameter named {name}: a plain tensor would never be trained.")
        if tuple(getattr(layer, name).shape) != shape:
            raise Wrong(
                f"{name} has the shape {tuple(getattr(layer, name).shape)}; with 6 inputs, 4 outputs, r=2: {shape}."
            )
    frozen = [p for p in base.parameters() if p.requires_grad]
    if frozen:
        raise Wrong("the base layer is still trainable: call requires_grad_(False) on it.")
    if layer.lora_B.abs().max() > 0:
        raise Wrong("lora_B is not zero at the start, so the new layer already differs from its base.")
    if layer.lora_A.abs().max() == 0:
        raise Wrong("lora_A is zero as well as lora_B: then both gradients are zero and nothing is ever learnt.")
    with torch.no_grad():
        layer.lora_B.normal_()
    update = x @ layer.lora_A.T @ layer.lora_B.T
    plain = F.linear(x, weight, base.bias)
    got = layer(x)
    if torch.allclose(got, plain, atol=1e-5):
        raise Wrong("the output is the base's alone: add the correction in forward.")
    if torch.allclose(got, plain + update, atol=1e-5):
        raise Wrong("the correction isn't scaled: multiply it by lora_alpha / r.")
    if torch.allclose(got, plain + 6.0 * update, atol=1e-5):
        raise Wrong("the correction is multiplied by lora_alpha; divide by r as well.")
    if torch.allclose(got, 3.0 * update, atol=1e-5):
        raise Wrong("the base layer's output is missing: LoRA adds to it.")
    if not torch.allclose(got, plain + 3.0 * update, atol=1e-5):
        raise Wrong("forward doesn't give base(x) + lora_alpha / r * B(Ax).")
    dropping = Layer(nn.Linear(6, 4), r=2, lora_alpha=6.0, lora_dropout=0.5)
    if not torch.equal(dropping(x), dropping.base_layer(x)):
        raise Wrong("the dropout hits the base's path: drop parts of x on the way into lora_A only.")
    with torch.no_grad():
        dropping.lora_B.normal_()
    if torch.equal(dropping(x), dropping(x)):
        raise Wrong("lora_dropout has no effect: apply nn.Dropout(lora_dropout) to x before lora_A.")


def _variant(change: Callable[[Any, float], object]) -> type[nn.Module]:
    """The lesson's layer, with something changed once it is made: `change(layer, lora_alpha)`."""

    class Answer(lesson.LoRALayer):
        def __init__(self, base_layer: nn.Linear, r: int, lora_alpha: float, lora_dropout: float) -> None:
            super().__init__(base_layer, r, lora_alpha, lora_dropout)
            change(self, lora_alpha)

    return Answer


def _swap(layer: Any, lora_alpha: float) -> None:
    layer.lora_A, layer.lora_B = layer.lora_B, layer.lora_A


class _NoBase(lesson.LoRALayer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - self.base_layer(x)


class _DropsAll(lesson.LoRALayer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.lora_dropout(x)
        return self.base_layer(x) + self.scaling * F.linear(F.linear(x, self.lora_A), self.lora_B)


exercise(
    "lora_layer",
    reference=lesson.LoRALayer,
    test=_judge_layer,
    mistakes=[
        Mistake(
            _variant(lambda layer, alpha: layer.base_layer.requires_grad_(True)),
            expect="the base layer is still trainable",
        ),
        Mistake(_variant(lambda layer, alpha: setattr(layer, "scaling", 1.0)), expect="isn't scaled"),
        Mistake(_variant(lambda layer, alpha: setattr(layer, "scaling", alpha)), expect="divide by r as well"),
        Mistake(_variant(lambda layer, alpha: nn.init.normal_(layer.lora_B)), expect="lora_B is not zero at the start"),
        Mistake(_variant(lambda layer, alpha: nn.init.zeros_(layer.lora_A)), expect="both gradients are zero"),
        Mistake(_variant(_swap), expect="lora_A has the shape (4, 2)"),
        Mistake(_NoBase, expect="the base layer's output is missing"),
        Mistake(_DropsAll, expect="the dropout hits the base's path"),
        Mistake(
            _variant(lambda layer, alpha: setattr(layer, "lora_dropout", nn.Identity())),
            expect="lora_dropout has no effect",
        ),
    ],
    hints=[
        "lora_A takes d_in numbers to r, so its shape is (r, d_in); lora_B takes r numbers to d_out.",
        "The base: self.base_layer = base_layer.requires_grad_(False).",
        "F.linear(x, M) computes x @ M.T, so the correction is scaling * F.linear(F.linear(dropped, lora_A), lora_B).",
    ],
    points=3,
)

# -------------------------------------------------------------------------------------------- where the layers go


class _Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(2, 2)
        self.q_proj_norm = nn.LayerNorm(2)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(2, 2), "v_proj": nn.Linear(2, 2)}) for _ in range(2)
        )
        self.extra = nn.ModuleDict({"my_q_proj": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})


exercise(
    "layers_to_wrap",
    reference=lesson.layers_to_wrap,
    cases=[lambda: (_Toy(), ["q_proj"]), lambda: (_Toy(), ["v_proj", "norm"]), lambda: (_Toy(), ["q_proj", "v_proj"])],
    mistakes=[
        Mistake(
            lambda model, targets: [
                n for n, m in model.named_modules() if isinstance(m, nn.Linear) and any(t in n for t in targets)
            ],
            "'my_q_proj' was found as well, since it contains 'q_proj': compare the whole last part of the name.",
        ),
        Mistake(
            lambda model, targets: [n for n, _ in model.named_modules() if n.rpartition(".")[2] in targets],
            "a module that is no nn.Linear was found: check isinstance(module, nn.Linear).",
        ),
        Mistake(
            lambda model, targets: [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n in targets],
            "only layers at the top were found: one in a block is called 'blocks.0.q_proj', so compare its last part.",
        ),
        Mistake(
            lambda model, targets: [n.rpartition(".")[2] for n in lesson.layers_to_wrap(model, targets)],
            "return the full names, such as 'blocks.0.q_proj': the last part alone doesn't say which block.",
        ),
    ],
    hints=[
        "model.named_modules() gives pairs of a name and a module.",
        "'blocks.0.q_proj'.rpartition('.')[2] is 'q_proj'.",
    ],
)

# ----------------------------------------------------------------------------------------------------- the labels


exercise(
    "answer_labels",
    reference=lesson.answer_labels,
    cases=[([5, 6, 7], [8, 1]), ([5], [8, 9, 1]), ([4, 4], [4, 1])],
    mistakes=[
        Mistake(
            lambda prompt, answer: prompt + answer,
            "the prompt is learnt too: the model would be trained to ask the question. Its labels are -100.",
        ),
        Mistake(
            lambda prompt, answer: [0] * len(prompt) + answer,
            "0 is a token's id (here the padding's), and the model would learn to say it. The label to skip is -100.",
        ),
        Mistake(
            lambda prompt, answer: ([IGNORED] * len(prompt) + answer)[1:] + [IGNORED],
            "you shifted the labels; transformers' models shift them themselves, so label i belongs to token i.",
        ),
        Mistake(
            lambda prompt, answer: answer, "labels and input ids must have the same length: the prompt needs its -100s."
        ),
        Mistake(
            lambda prompt, answer: [IGNORED] * len(prompt) + answer[:-1] + [IGNORED],
            "the end mark isn't learnt, so the model would never stop: the last answer token keeps its label.",
        ),
    ],
    hints=[
        "One label for each token of prompt + answer.",
        "-100 for each token of the prompt, then the answer's own ids.",
    ],
)

# ------------------------------------------------------------------------------------------------------ the merge


def _merge_case(d: int, r: int, scaling: float):
    return lambda: (torch.randn(d, d), torch.randn(r, d), torch.randn(d, r), scaling)


def _not_in_place(merge) -> None:
    weight = torch.zeros(3, 3)
    merge(weight, torch.ones(1, 3), torch.ones(3, 1), 1.0)
    if weight.abs().max() > 0:
        raise Wrong("your function changes the weight it was given: the base would be lost. Return a new matrix.")


exercise(
    "merged_weight",
    reference=lesson.merged_weight,
    cases=[_merge_case(4, 2, 2.0), _merge_case(5, 3, 0.5)],
    test=_not_in_place,
    mistakes=[
        Mistake(lambda W, A, B, s: W + B @ A, "the scaling is missing: what forward adds is scaling * B(Ax)."),
        Mistake(lambda W, A, B, s: W + s * (A.T @ B.T), "that is the transpose of the correction: the order is B @ A."),
        Mistake(lambda W, A, B, s: s * (B @ A), "the base weight is missing: merging adds the correction to it."),
        Mistake(
            lambda W, A, B, s: s * (W + B @ A), "you scaled the base weight too: scaling belongs to the correction."
        ),
        Mistake(lambda W, A, B, s: W.add_(s * (B @ A)), expect="changes the weight it was given"),
    ],
    hints=[
        "lora_B is (out, r), lora_A is (r, in) and the weight (out, in).",
        "scaling * (lora_B @ lora_A) is what forward adds.",
    ],
)

# ------------------------------------------------------------------------------------------------ the file's names


exercise(
    "peft_name",
    reference=lesson.peft_name,
    cases=[("model.layers.0.self_attn.q_proj", "lora_A"), ("model.layers.3.mlp.up_proj", "lora_B")],
    mistakes=[
        Mistake(
            lambda layer, matrix: f"{layer}.{matrix}.weight",
            "PEFT wraps the model twice, and both wrappers are in the name: put base_model.model. in front.",
        ),
        Mistake(
            lambda layer, matrix: f"base_model.model.{layer}.{matrix}",
            "in PEFT each matrix is a small linear layer, so its name ends with .weight.",
        ),
        Mistake(
            lambda layer, matrix: f"base_model.model.{layer}.{matrix}.default.weight",
            "the adapter's name, default, is left out when PEFT saves: it is chosen anew when the file is loaded.",
        ),
        Mistake(
            lambda layer, matrix: f"base_model.{layer}.{matrix}.weight",
            "one wrapper is missing: after base_model. comes another model.",
        ),
    ],
    hints=["Print a few keys of PEFT's file: list(load_file(path))[:2]."],
)
