"""Chapter 4's exercises: the layer, the search for its places, the labels and the merge."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.course.checks.compare import difference
from utils.course.checks.references import ch04 as lesson
from utils.course.checks.registry import Mistake, Wrong, exercise
from utils.data.chat import IGNORED

# ------------------------------------------------------------------------------------------------------- the layer

Layer = Callable[..., Any]


def _parts(Layer: Layer) -> None:
    """Names, shapes, and what trains."""
    base = nn.Linear(6, 4)
    try:
        layer = Layer(base, 2, 6.0)
    except AttributeError as problem:
        if "Module.__init__" not in str(problem):
            raise
        raise Wrong("super().__init__() has to come first in __init__: without it no module can hold a part.") from None
    if not isinstance(layer, nn.Module):
        raise Wrong("a layer is an nn.Module: class LoRALayer(nn.Module), and super().__init__() comes first.")
    for name in ("base_layer", "lora_A", "lora_B", "scaling", "lora_dropout"):
        if not hasattr(layer, name):
            raise Wrong(f"the layer has no {name}: the names are PEFT's, and what reads the layer later asks for them.")
    if layer.base_layer is not base:
        raise Wrong("base_layer is not the layer that was given: keep that one, a copy costs its memory again.")
    for name, shape in (("lora_A", (2, 6)), ("lora_B", (4, 2))):
        matrix = getattr(layer, name)
        if isinstance(matrix, nn.Module):
            raise Wrong(
                f"{name} is a module, {type(matrix).__name__}; here it is the matrix itself, an nn.Parameter of shape "
                f"{shape}, which forward multiplies by."
            )
        if not isinstance(matrix, nn.Parameter):
            raise Wrong(f"{name} is no nn.Parameter: a plain tensor would never be trained.")
        if tuple(matrix.shape) != shape:
            raise Wrong(f"{name} has the shape {tuple(matrix.shape)}; with 6 inputs, 4 outputs, r=2 it is {shape}.")
        if not matrix.requires_grad:
            raise Wrong(f"{name} doesn't require a gradient, so it would never be trained: only the base is frozen.")
    if any(p.requires_grad for p in base.parameters()):
        raise Wrong("the base layer is still trainable: call requires_grad_(False) on it.")
    if extra := [n for n, p in layer.named_parameters() if p.requires_grad and n not in ("lora_A", "lora_B")]:
        raise Wrong(f"{extra[0]} would be trained as well: only lora_A and lora_B are.")


def _start(Layer: Layer) -> None:
    """B is zero, A is drawn as PEFT draws it."""
    d_in, r = 64, 16
    with _nan_in_what_is_empty():
        layer = Layer(nn.Linear(d_in, 8), r, 16.0)
    A, B = layer.lora_A.detach(), layer.lora_B.detach()
    if A.shape != (r, d_in) or B.shape != (8, r):
        raise Wrong(
            f"with 64 inputs, 8 outputs and r=16 lora_A is (16, 64) and lora_B (8, 16), and yours are {tuple(A.shape)} "
            f"and {tuple(B.shape)}."
        )
    for name, matrix in (("lora_A", A), ("lora_B", B)):
        if not matrix.isfinite().all():
            raise Wrong(
                f"{name} holds what was in the memory before: torch.empty only reserves it, and has to be filled."
            )
    if B.abs().max() > 0:
        raise Wrong("lora_B is not zero at the start, so the new layer already differs from its base.")
    if A.abs().max() == 0:
        raise Wrong("lora_A is zero as well as lora_B: then both gradients are zero and nothing is ever learnt.")
    if torch.linalg.matrix_rank(A) < r:
        raise Wrong("rows of lora_A are alike: they get the same gradient and stay alike, so the rank is not r.")
    bound = d_in**-0.5  # kaiming_uniform_ with a = sqrt(5) draws evenly between -1/sqrt(d_in) and 1/sqrt(d_in)
    spread = A.std().item() / (bound / 3**0.5)
    # Of 1,024 even draws the spread is within 5% of its mean, and the mean within 0.1 bounds of 0, but once in 10^5.
    if not 0.9 < spread < 1.1:
        raise Wrong(
            f"lora_A is drawn {number(spread)} times as wide as nn.init.kaiming_uniform_(lora_A, a=5**0.5) draws it: "
            "with 64 inputs its numbers lie between -0.125 and 0.125."
        )
    if A.abs().max() > bound * (1 + 1e-6) or abs(A.mean()) > 0.2 * bound:
        raise Wrong(
            f"lora_A is as wide as it should be, but otherwise drawn: from {number(A.min().item())} to "
            f"{number(A.max().item())}. nn.init.kaiming_uniform_(lora_A, a=5**0.5) draws evenly between -0.125 and "
            "0.125 with 64 inputs, as often below zero as above."
        )
    if torch.equal(A, Layer(nn.Linear(d_in, 8), r, 16.0).lora_A.detach()):
        raise Wrong("every layer gets the same lora_A: draw it anew in each, without setting a seed.")


@contextmanager
def _nan_in_what_is_empty() -> Iterator[None]:
    """Inside the block torch.empty is filled with NaN, where the memory might hold an older layer's good draw."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch._C._set_deterministic_algorithms(True, warn_only=True)  # the public function imports torch's compiler
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(before[0], warn_only=before[1])


def number(value: float) -> str:
    return f"{value:.2g}"


def _random_B(layer: Any) -> Any:
    with torch.no_grad():
        layer.lora_B.normal_()
    return layer


# d_in, d_out, r, lora_alpha, bias, the input's shape in front of d_in: a scaling of 3, 1.5, 0.5, and 16/3.
_SETTINGS = (
    (6, 4, 2, 6.0, True, (5,)),
    (5, 7, 4, 6, False, (2, 3)),
    (9, 3, 32, 16, True, (4,)),
    (7, 8, 3, 16, True, (2, 1, 3)),
)


# What a wrong output is, by what it has of base(x), of B (A x), of lora_alpha and of r.
_WRONG_OUTPUTS: dict[str, Callable[[Tensor, Tensor, float, int], Tensor]] = {
    "the output is the base's alone: add the update in forward.": lambda base, update, alpha, r: base,
    "the update isn't scaled: multiply it by lora_alpha / r.": lambda base, update, alpha, r: base + update,
    "the update is multiplied by lora_alpha; divide by r as well.": lambda base, update, alpha, r: (
        base + alpha * update
    ),
    "lora_alpha // r rounds down, to 0 where r is larger: the scaling is lora_alpha / r.": (
        lambda base, update, alpha, r: base + alpha // r * update
    ),
    "that is lora_alpha / sqrt(r), rsLoRA's scaling; plain LoRA divides by r.": (
        lambda base, update, alpha, r: base + alpha / r**0.5 * update
    ),
    "the scaling is upside down: lora_alpha / r, and not r / lora_alpha.": (
        lambda base, update, alpha, r: base + r / alpha * update
    ),
    "the base layer's output is scaled, too: the scaling belongs to the update.": (
        lambda base, update, alpha, r: alpha / r * (base + update)
    ),
    "the update is taken away: LoRA adds it.": lambda base, update, alpha, r: base - alpha / r * update,
}


def _output(Layer: Layer) -> None:
    """base(x) + lora_alpha / r * B (A x), for inputs of every form, in both modes."""
    tried = []
    for d_in, d_out, r, alpha, bias, batch in _SETTINGS:
        base = nn.Linear(d_in, d_out, bias=bias)
        layer, x = Layer(base, r, alpha), torch.randn(*batch, d_in)
        plain, start = base(x), _called(layer, x)
        if start is None:
            raise Wrong("forward returns nothing: is a return missing?")
        if not isinstance(start, Tensor):
            raise Wrong(f"forward returns a {type(start).__name__}: a layer's output is one tensor.")
        if start.shape != plain.shape:
            shapes = f"{tuple(x.shape)} gives {tuple(start.shape)}; base_layer gives {tuple(plain.shape)}"
            raise Wrong(f"an input of shape {shapes}.")
        if not torch.equal(start, plain):
            raise Wrong("with lora_B at zero the layer has to give what base_layer gives; is its output missing?")
        _random_B(layer)
        outputs = layer(x), layer.eval()(x)
        tried.append((layer, x, plain, F.linear(F.linear(x, layer.lora_A), layer.lora_B), outputs, alpha, r))
    in_train, in_eval = (
        all(_near(outputs[mode], plain + alpha / r * update) for _, _, plain, update, outputs, alpha, r in tried)
        for mode in (0, 1)
    )
    if in_eval and not in_train:
        raise Wrong(
            "with lora_dropout=0 forward is right in eval mode and wrong in train mode: without dropout they agree."
        )
    if in_train and not in_eval:
        raise Wrong("forward is right in train mode and wrong in eval mode: the update belongs to both.")
    for said, wrong in _WRONG_OUTPUTS.items():
        if all(_near(got, wrong(plain, update, alpha, r)) for _, _, plain, update, (got, _), alpha, r in tried):
            raise Wrong(said)
    for layer, x, plain, update, (got, _), alpha, r in tried:
        if said := None if _near(got, plain + alpha / r * update) else difference(plain + alpha / r * update, got):
            told = f"r={r}, lora_alpha={alpha} and an input of shape {tuple(x.shape)}"
            if factor := _multiple(got - plain, update):
                raise Wrong(
                    f"for {told} the update B(Ax) counts {factor:.4g} times, not lora_alpha / r = {alpha / r:.4g}."
                )
            raise Wrong(f"forward doesn't give base(x) + lora_alpha / r * B(Ax) for {told}: {said}")
        if isinstance(layer.scaling, Tensor) or layer.scaling != alpha / r:
            raise Wrong(f"scaling is the number lora_alpha / r, {alpha / r:.3g} here, and yours is {layer.scaling!r}.")


def _multiple(one: Tensor, other: Tensor) -> float | None:
    """The number that `one` is of times `other`, or None."""
    factor = float((one * other).sum() / other.square().sum())
    return factor if factor and _near(one, factor * other) else None


def _called(layer: Any, x: Tensor) -> Any:
    given = x.clone()
    try:
        done = layer(x)
    except RuntimeError as problem:
        raise Wrong(
            f"an input of shape {tuple(x.shape)}, as a model may pass it, is refused ({problem}). F.linear(x, M), "
            "which is x @ M.T, takes any number of dimensions in front of the last; torch.mm takes matrices only."
        ) from None
    if not torch.equal(x, given):
        raise Wrong("forward changes its input x, and other layers read the same one: work on a new tensor.")
    return done


def _near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _backward(Layer: Layer) -> None:
    """A, B and the input get their gradients, the base none."""
    for d_in, d_out, r, alpha, bias, batch in _SETTINGS:
        layer = _random_B(Layer(nn.Linear(d_in, d_out, bias=bias), r, alpha))
        x = torch.randn(*batch, d_in, requires_grad=True)
        g, W = torch.randn(*batch, d_out), layer.base_layer.weight.detach()
        out = layer(x)
        if not out.requires_grad:
            raise Wrong("no gradient comes through forward: torch.no_grad() or .detach() keeps A and B from training.")
        out.backward(g)
        A, B, s = layer.lora_A.detach(), layer.lora_B.detach(), alpha / r
        rows, errors = x.detach().reshape(-1, d_in), g.reshape(-1, d_out)
        right = {"lora_A": s * (errors @ B).T @ rows, "lora_B": s * errors.T @ (rows @ A.T)}
        for name, gradient in right.items():
            got = getattr(layer, name).grad
            if got is None:
                raise Wrong(f"{name} gets no gradient: something in forward cuts it off (.detach(), .data, no_grad).")
            if not _near(got, gradient):
                raise Wrong(f"{name} gets another gradient than the formula's: {difference(gradient, got)}")
        if x.grad is None or not _near(x.grad, g @ W + s * g @ B @ A):
            raise Wrong(
                "the gradient of x is not right: it goes through base_layer and through A and B, and the layers below "
                "train by it. Is a path detached?"
            )
        if layer.base_layer.weight.grad is not None:
            raise Wrong("the base weight got a gradient: it has to stay frozen.")


def _dropout(Layer: Layer) -> None:
    """On the input of lora_A, each number by itself, in training only."""
    base = nn.Linear(6, 6)
    layer = Layer(base, r=6, lora_alpha=12.0, lora_dropout=0.5)
    x = torch.ones(200, 6)
    start = layer(x)
    if not torch.equal(x, torch.ones_like(x)):
        raise Wrong("forward drops parts of x itself, and other layers read the same x: leave inplace=True out.")
    if not torch.equal(start, base(x)):
        raise Wrong("the dropout hits the base's path: drop parts of x on the way into lora_A only.")
    with torch.no_grad():  # matrices that can be undone: what came into lora_A is then read off the output
        layer.lora_A.copy_(torch.eye(6) + 0.1 * torch.randn(6, 6))
        layer.lora_B.copy_(torch.eye(6) + 0.1 * torch.randn(6, 6))
    undo = torch.linalg.inv((layer.lora_B @ layer.lora_A).detach()).T
    layer.eval()
    if not _near((layer(x) - base(x)) @ undo / 2, x):
        raise Wrong("in eval mode nothing may drop, and here it does: nn.Dropout, made in __init__, knows the mode.")
    layer.train()
    came = ((layer(x) - base(x)) @ undo / 2).detach()
    if (came - 1).abs().max() < 0.01:
        raise Wrong("lora_dropout has no effect: apply nn.Dropout(lora_dropout) to x before lora_A.")
    dropped = came.abs() < 0.01
    if not (dropped | ((came - 2).abs() < 0.01)).all():
        raise Wrong(
            "the dropout falls in the wrong place, or isn't nn.Dropout's: it drops parts of x before lora_A, not of "
            "A x or of the update, and what is left counts 1 / (1 - p) times."
        )
    # Half of 1,200 numbers, give or take 7 standard deviations; alike in a row or a column only if dropped together.
    if not 0.4 < (rate := dropped.float().mean().item()) < 0.6:
        raise Wrong(f"with lora_dropout=0.5 about half of x is dropped, and here {rate:.0%} was.")
    if (dropped == dropped[:, :1]).all() or (dropped == dropped[:1]).all():
        raise Wrong("whole rows or columns of x are dropped together: nn.Dropout decides for each number by itself.")


class _Answer(nn.Module):
    """The right layer in the form of the lesson; the mistakes change one thing each."""

    def __init__(self, base_layer: nn.Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        d_out, d_in = base_layer.weight.shape
        self.lora_A = nn.Parameter(self.draw(torch.empty(r, d_in)))
        self.lora_B = nn.Parameter(torch.zeros(d_out, r))
        self.scaling: Any = self.scale(lora_alpha, r)
        self.lora_dropout = nn.Dropout(lora_dropout)
        self.finish()

    def draw(self, A: Tensor) -> Tensor:
        return nn.init.kaiming_uniform_(A, a=5**0.5)

    def scale(self, alpha: float, r: int) -> Any:
        return alpha / r

    def finish(self) -> None:
        """What a mistake does at the end of __init__."""

    def update(self, x: Tensor) -> Tensor:
        return self.scaling * F.linear(F.linear(self.lora_dropout(x), self.lora_A), self.lora_B)

    def forward(self, x: Tensor) -> Any:
        return self.base_layer(x) + self.update(x)


def _with(**methods: Callable[..., Any]) -> type[_Answer]:
    return type("Answer", (_Answer,), methods)


def _trained_base(self: _Answer) -> None:
    self.base_layer.requires_grad_(True)


def _swap(self: _Answer) -> None:
    self.lora_A, self.lora_B = self.lora_B, self.lora_A


def _plain_tensors(self: _Answer) -> None:
    A, B = self.lora_A.detach(), self.lora_B.detach()
    del self.lora_A, self.lora_B
    self.lora_A, self.lora_B = A, B  # pyright: ignore[reportAttributeAccessIssue]


def _linear_layers(self: _Answer) -> None:
    (r, d_in), d_out = self.lora_A.shape, len(self.lora_B)
    del self.lora_A, self.lora_B
    self.add_module("lora_A", nn.Linear(d_in, r, bias=False))
    self.add_module("lora_B", nn.Linear(r, d_out, bias=False))


def _renamed(self: _Answer) -> None:
    self.alpha = self.scaling
    del self.scaling


def _no_grad(self: _Answer, x: Tensor) -> Tensor:
    with torch.no_grad():
        update = self.update(x)
    return self.base_layer(x) + update


def _functional(self: _Answer, x: Tensor) -> Tensor:
    dropped = F.dropout(x, self.lora_dropout.p)
    return self.scaling * F.linear(F.linear(dropped, self.lora_A), self.lora_B)


def _whole_rows(self: _Answer, x: Tensor) -> Tensor:
    rows = self.lora_dropout(torch.ones(*x.shape[:-1], 1))
    return self.scaling * F.linear(F.linear(rows * x, self.lora_A), self.lora_B)


def _in_place(self: _Answer, x: Tensor) -> Tensor:
    self.lora_dropout.inplace = True
    return self.base_layer(x) + self.update(x)


def _in_training(self: _Answer, x: Tensor) -> Tensor:
    return self.base_layer(x) + self.update(x) if self.training else self.base_layer(x)


def _on_low(self: _Answer, x: Tensor) -> Tensor:
    return self.scaling * F.linear(self.lora_dropout(F.linear(x, self.lora_A)), self.lora_B)


def _flat(self: _Answer, x: Tensor) -> Tensor:
    return self.base_layer(x) + self.scaling * torch.mm(torch.mm(self.lora_dropout(x), self.lora_A.T), self.lora_B.T)


exercise(
    "lora_layer",
    reference=lesson.LoRALayer,
    test=(_parts, _start, _output, _backward, _dropout),
    mistakes=[
        Mistake(_with(finish=_trained_base), expect="the base layer is still trainable"),
        Mistake(_with(finish=lambda self: self.requires_grad_(False)), expect="lora_A doesn't require a gradient"),
        Mistake(_with(finish=_plain_tensors), expect="lora_A is no nn.Parameter"),
        Mistake(_with(finish=_linear_layers), expect="lora_A is a module, Linear"),
        Mistake(_with(finish=_renamed), expect="the layer has no scaling"),
        Mistake(_with(finish=_swap), expect="lora_A has the shape (4, 2)"),
        Mistake(_with(finish=lambda self: nn.init.normal_(self.lora_B)), expect="lora_B is not zero at the start"),
        Mistake(_with(draw=torch.zero_), expect="both gradients are zero"),
        Mistake(_with(draw=lambda self, A: torch.ones_like(A) / 10), expect="rows of lora_A are alike"),
        Mistake(_with(draw=lambda self, A: A.normal_()), expect="times as wide as"),
        Mistake(
            _with(draw=lambda self, A: A.normal_(std=(3 * A.shape[1]) ** -0.5)),
            expect="lora_A is as wide as it should be, but otherwise drawn",
        ),
        Mistake(_with(draw=lambda self, A: A.fill_(float("nan"))), expect="torch.empty only reserves it"),
        Mistake(_with(forward=lambda self, x: self.base_layer(x)), expect="the output is the base's alone"),
        Mistake(_with(scale=lambda self, alpha, r: 1.0), expect="isn't scaled"),
        Mistake(_with(scale=lambda self, alpha, r: alpha), expect="divide by r as well"),
        Mistake(_with(scale=lambda self, alpha, r: alpha // r), expect="rounds down, to 0"),
        Mistake(_with(scale=lambda self, alpha, r: alpha / r**0.5), expect="rsLoRA's scaling"),
        Mistake(_with(scale=lambda self, alpha, r: r / alpha), expect="upside down"),
        Mistake(_with(forward=lambda self, x: self.update(x)), expect="is its output missing?"),
        Mistake(_with(forward=lambda self, x: self.base_layer(x) - self.update(x)), expect="the update is taken away"),
        Mistake(_with(forward=_flat), expect="torch.mm takes matrices only"),
        Mistake(_with(forward=_no_grad), expect="lora_A gets no gradient"),
        Mistake(
            _with(forward=lambda self, x: self.base_layer(x).detach() + self.update(x.detach())),
            expect="the gradient of x is not right",
        ),
        Mistake(
            _with(forward=lambda self, x: self.base_layer(self.lora_dropout(x)) + self.update(x)),
            expect="the dropout hits the base's path",
        ),
        Mistake(_with(forward=_in_place), expect="leave inplace=True out"),
        Mistake(
            _with(finish=lambda self: setattr(self.lora_dropout, "p", 0.5)),
            expect="right in eval mode and wrong in train mode",
        ),
        Mistake(_with(forward=_in_training), expect="right in train mode and wrong in eval mode"),
        Mistake(_with(update=_functional), expect="in eval mode nothing may drop"),
        Mistake(_with(update=_whole_rows), expect="whole rows or columns of x are dropped together"),
        Mistake(_with(finish=lambda self: setattr(self.lora_dropout, "p", 0.0)), expect="lora_dropout has no effect"),
        Mistake(_with(update=_on_low), expect="the dropout falls in the wrong place"),
    ],
    hints=[
        "lora_A takes d_in numbers to r, so its shape is (r, d_in); lora_B takes r numbers to d_out.",
        "The base: self.base_layer = base_layer.requires_grad_(False).",
        "F.linear(x, M) computes x @ M.T, so the update is scaling * F.linear(F.linear(dropped, lora_A), lora_B).",
    ],
    why="B at zero makes the start harmless and A's draw lets B's gradient be anything but zero; the base is kept, not "
    "copied, and F.linear takes whatever stands in front of the last dimension.",
    points=3,
)

# -------------------------------------------------------------------------------------------- where the layers go

_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj", "lm_head", "q_proj_norm", "proj")


class _Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(2, 2)
        self.q_proj_norm = nn.LayerNorm(2)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(2, 2), "v_proj": nn.Linear(2, 2)}) for _ in range(2)
        )
        self.extra = nn.ModuleDict({"my_q_proj": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})


def _drawn_model(rng: random.Random) -> tuple[nn.Module, list[str]]:
    """A tree of blocks, whose parts have names that overlap, in another order each time."""

    def part(name: str, depth: int) -> nn.Module:
        if depth and rng.random() < 0.3:
            return nn.ModuleDict({inner: part(inner, depth - 1) for inner in rng.sample(_NAMES, 3)})
        return nn.LayerNorm(2) if name == "q_proj_norm" or rng.random() < 0.2 else nn.Linear(2, 2)

    count, most = rng.choice([(1, 5), (2, 4), (3, 3), (11, 1)])  # eleven, since "10" sorts before "2"
    blocks = nn.ModuleList(
        nn.ModuleDict({name: part(name, 1) for name in rng.sample(_NAMES, rng.randint(1, most))}) for _ in range(count)
    )
    model = nn.ModuleDict({"layers": blocks, "lm_head": nn.Linear(2, 3), "my_q_proj": nn.Linear(2, 2)})
    return model, rng.sample([*_NAMES, "layers", "embed"], rng.randint(1, 4))


exercise(
    "layers_to_wrap",
    reference=lesson.layers_to_wrap,
    cases=[lambda: (_Toy(), ["q_proj"]), lambda: (_Toy(), ["v_proj", "norm"]), lambda: (_Toy(), ["q_proj", "v_proj"])],
    drawn=_drawn_model,
    draws=12,
    mistakes=[
        Mistake(
            lambda model, targets: [
                n for n, m in model.named_modules() if isinstance(m, nn.Linear) and any(t in n for t in targets)
            ],
            "'my_q_proj' was found as well, since it contains 'q_proj': compare the whole last part of the name.",
        ),
        Mistake(
            lambda model, targets: [
                n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(tuple(targets))
            ],
            "'my_q_proj' ends with 'q_proj' and is another layer: compare the whole last part, after the last dot.",
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
            lambda model, targets: [
                n
                for n, m in model.named_modules()
                if isinstance(m, nn.Linear) and n.rpartition(".")[2] in " ".join(targets)
            ],
            "'proj' was found as well, since it is a part of the text 'q_proj': targets is a list, so ask whether the "
            "name is one of its items.",
        ),
        Mistake(
            lambda model, targets: [n for n, m in model.named_modules() if isinstance(m, nn.Linear)],
            "every nn.Linear was found: only those whose last part is in targets.",
        ),
        Mistake(
            lambda model, targets: [
                n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.rpartition(".")[2] not in targets
            ],
            "the other way round: you found the linear layers that are not in targets.",
        ),
        Mistake(
            lambda model, targets: [f"{n}.weight" for n in lesson.layers_to_wrap(model, targets)],
            "those are the names of weights: a layer's name ends without .weight.",
        ),
        Mistake(
            lambda model, targets: len(lesson.layers_to_wrap(model, targets)),
            "that is how many there are: return their names.",
        ),
        Mistake(
            lambda model, targets: [n.rpartition(".")[2] for n in lesson.layers_to_wrap(model, targets)],
            "return the full names, such as 'blocks.0.q_proj': the last part alone doesn't say which block.",
        ),
        Mistake(
            lambda model, targets: [n for t in targets for n in lesson.layers_to_wrap(model, [t])],
            "the names are sorted by target: the task wants them in the order of model.named_modules().",
        ),
        Mistake(
            lambda model, targets: sorted(lesson.layers_to_wrap(model, targets)),
            "sorted as text 'layers.10' comes before 'layers.2': leave the order of model.named_modules().",
        ),
        Mistake(
            lambda model, targets: [
                n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.rpartition(".")[2] == targets[0]
            ],
            "only the first target was looked for: a name may be any of them.",
        ),
        Mistake(
            lambda model, targets: [
                n for n, m in model.named_modules() if isinstance(m, nn.Linear) and set(n.split(".")) & set(targets)
            ],
            "a block called like a target counts for all that is in it: only the last part of a name is compared.",
        ),
    ],
    hints=[
        "model.named_modules() gives pairs of a name and a module.",
        "'blocks.0.q_proj'.rpartition('.')[2] is 'q_proj'.",
    ],
    why="Comparing the whole last part takes q_proj in every block and leaves my_q_proj alone; PEFT does the same.",
)

# ----------------------------------------------------------------------------------------------------- the labels


def _drawn_pair(rng: random.Random) -> tuple[list[int], list[int]]:
    ids = [0, 1, 1, 2, 3, 50, 51, 52]
    return rng.choices(ids, k=rng.randint(0, 6)), [*rng.choices(ids, k=rng.randint(0, 5)), rng.choice([1, 2, 7])]


exercise(
    "answer_labels",
    reference=lesson.answer_labels,
    cases=[([5, 6, 7], [8, 1]), ([5], [8, 9, 1]), ([4, 4], [4, 1])],
    drawn=_drawn_pair,
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
            lambda prompt, answer: [-1] * len(prompt) + answer,
            "-1 is no label that cross-entropy skips: the one that it ignores is -100.",
        ),
        Mistake(
            lambda prompt, answer: ([IGNORED] * len(prompt) + answer)[1:] + [IGNORED],
            "you shifted the labels; transformers' models shift them themselves, so label i belongs to token i.",
        ),
        Mistake(
            lambda prompt, answer: [IGNORED] * (len(prompt) - 1) + answer + [IGNORED],
            "the answer's labels begin one place too early; transformers' models shift them themselves.",
        ),
        Mistake(
            lambda prompt, answer: [IGNORED, *([IGNORED] * len(prompt) + answer)[:-1]],
            "you shifted the labels to the right; transformers' models shift them themselves: label i is token i's.",
        ),
        Mistake(
            lambda prompt, answer: answer, "labels and input ids must have the same length: the prompt needs its -100s."
        ),
        Mistake(
            lambda prompt, answer: [IGNORED] * len(prompt) + answer[:-1] + [IGNORED],
            "the EOS token isn't learnt, so the model would never stop: the last answer token keeps its label.",
        ),
        Mistake(
            lambda prompt, answer: [IGNORED] * len(prompt) + answer[:-1],
            "one label is missing: the EOS token at the answer's end has one, too.",
        ),
        Mistake(
            lambda prompt, answer: [IGNORED if i in prompt else i for i in prompt + answer],
            "a token of the answer that also stands in the prompt lost its label: it is the place that counts.",
        ),
        Mistake(
            lambda prompt, answer: prompt + [IGNORED] * len(answer),
            "the other way round: the prompt's labels are -100, the answer's are its ids.",
        ),
        Mistake(
            lambda prompt, answer: [IGNORED] * (len(prompt) - 1) + prompt[-1:] + answer,
            "the prompt's last token has a label: what follows it is learnt from the answer's first label.",
        ),
        Mistake(
            lambda prompt, answer: [IGNORED] * (len(prompt) + 1) + answer[1:],
            "the answer's first token has no label: the model has to say it, so it is learnt as well.",
        ),
        Mistake(
            lambda prompt, answer: [IGNORED, *answer],
            "one -100 stands for the whole prompt: each of its tokens needs its own.",
        ),
        Mistake(
            lambda prompt, answer: [IGNORED] * len(answer) + answer,
            "there are as many -100s as the answer has tokens: it is the prompt's tokens that they stand for.",
        ),
        Mistake(
            lambda prompt, answer: [[IGNORED] * len(prompt), answer],
            "those are two lists in one: put them behind each other with +.",
        ),
        Mistake(
            lambda prompt, answer: (prompt + answer, [IGNORED] * len(prompt) + answer),
            "you return the ids beside the labels: the labels alone are asked for.",
        ),
        Mistake(
            lambda prompt, answer: [i if i in answer else IGNORED for i in prompt + answer],
            "a token of the prompt that also stands in the answer has a label: it is the place that counts.",
        ),
        Mistake(
            lambda prompt, answer: [None] * len(prompt) + answer,
            "None is no label, and can't be put into a tensor: the one that cross-entropy skips is -100.",
        ),
        Mistake(
            lambda prompt, answer: prompt.__setitem__(slice(None), [IGNORED] * len(prompt)) or prompt + answer,
            "your function changes its input: the prompt's ids are overwritten, and the model still has to read them.",
        ),
    ],
    hints=[
        "One label for each token of prompt + answer.",
        "-100 for each token of the prompt, then the answer's own ids.",
    ],
    why="The loss skips -100, so only the answer is learnt, its EOS token included; the model shifts by itself.",
)

# ------------------------------------------------------------------------------------------------------ the merge


def _merge_case(d_out: int, d_in: int, r: int, scaling: float, dtype: torch.dtype = torch.float32):
    def make() -> tuple[Tensor, Tensor, Tensor, float]:
        sizes = (d_out, d_in), (r, d_in), (d_out, r)
        return *(torch.randn(*size, dtype=dtype) for size in sizes), scaling  # pyright: ignore[reportReturnType]

    return make


def _drawn_merge(rng: random.Random) -> tuple[Tensor, Tensor, Tensor, float]:
    d_out, d_in, r = rng.sample(range(1, 8), 3)
    return _merge_case(
        d_out, d_in, r, rng.choice([0.25, 0.5, 1.5, 2.0, 4.0]), rng.choice([torch.float32, torch.float64])
    )()


exercise(
    "merged_weight",
    reference=lesson.merged_weight,
    cases=[_merge_case(4, 4, 2, 2.0), _merge_case(5, 6, 3, 0.5)],
    drawn=_drawn_merge,
    new_result=True,
    mistakes=[
        Mistake(lambda W, A, B, s: W + B @ A, "the scaling is missing: what forward adds is scaling * B(Ax)."),
        Mistake(
            lambda W, A, B, s: W + s * (A.T @ B.T),
            "A.T @ B.T is the transpose of the update, which fits a square weight only: the order is B @ A.",
        ),
        Mistake(
            lambda W, A, B, s: W + s * (A @ B),
            "A @ B is (r, r) at best: B (out, r) stands in front of A (r, in), and gives (out, in).",
        ),
        Mistake(lambda W, A, B, s: s * (B @ A), "the base weight is missing: merging adds the update to it."),
        Mistake(lambda W, A, B, s: s * (W + B @ A), "you scaled the base weight too: scaling belongs to the update."),
        Mistake(lambda W, A, B, s: W - s * (B @ A), "that takes the update away, as unmerging does: merging adds it."),
        Mistake(lambda W, A, B, s: W + B @ A / s, "you divided by the scaling: forward multiplies by it."),
        Mistake(
            lambda W, A, B, s: W + s / len(A) * (B @ A),
            "the rank counts twice: scaling is lora_alpha / r already, so r is in it.",
        ),
        Mistake(
            lambda W, A, B, s: W.add_(s * (B @ A)),
            "your function changes the weight it was given: the base would be lost. Return a new matrix.",
        ),
        Mistake(lambda W, A, B, s: W + s * s * (B @ A), "the scaling counts twice: once is what forward does."),
        Mistake(
            lambda W, A, B, s: W + int(s) * (B @ A), "the scaling was cut to a whole number: 0.5 is one, and 1.5, too."
        ),
        Mistake(
            lambda W, A, B, s: W * (1 + s * (B @ A)),
            "you multiply the weight by the update, entry by entry: merging adds it.",
        ),
        Mistake(
            lambda W, A, B, s: W @ (s * (B @ A)),
            "you multiply the weight by the update: merging adds it to the weight.",
        ),
        Mistake(
            lambda W, A, B, s: (W + s * (B @ A)).to(torch.bfloat16).to(W.dtype),
            "the result was rounded to bfloat16 on the way: it has 8 significant bits, float32 has 24.",
        ),
        Mistake(
            lambda W, A, B, s: W + s * (B * A.T),
            "* multiplies entry by entry: the update is the matrix product, lora_B @ lora_A.",
        ),
        Mistake(
            lambda W, A, B, s: W + s * B,
            "lora_A is missing: the update is the product of both matrices.",
        ),
        Mistake(
            lambda W, A, B, s: (W + s * (B @ A)).T, "that is the transpose: the weight is (out, in), and so is B @ A."
        ),
    ],
    hints=[
        "lora_B is (out, r), lora_A is (r, in) and the weight (out, in).",
        "scaling * (lora_B @ lora_A) is what forward adds.",
    ],
    why="x W^T + s x A^T B^T = x (W + s B A)^T: one matrix does what the layer did, at no further cost.",
)
