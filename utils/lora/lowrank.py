"""Low rank: a matrix's best approximation, how much of it a few directions hold, the mathematics of B A.

Weights have PyTorch's shape (d_out, d_in) and batches are rows, so a linear layer computes ``x @ W.T``. A
LoRA update of a weight is ``s * B @ A`` with B (d_out, r) and A (r, d_in), as in Hu et al., 2021
(https://arxiv.org/abs/2106.09685).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_FOX = """\
2222222222222222222222
2266222222222222226622
2269622222222222269622
2269962222222222699622
2266996222222226996622
2266999666666669996622
2266696666666666966622
2266666666666666666622
2666666666666666666662
2666611666666661166662
2666611666666661166662
2699666666666666669962
2699999666666669999962
2269999990000999999622
2226999990000999996222
2222269999999999622222
2222222269999622222222
2222222222222222222222"""


def fox() -> Float[Tensor, "18 22"]:
    """A small picture to approximate: a fox's face, float64 brightness between 0 (black) and 1 (white)."""
    return torch.tensor([[int(pixel) / 9 for pixel in row] for row in _FOX.splitlines()], dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ rank


def _checked_matrix(W: Tensor) -> None:
    if W.ndim != 2 or 0 in W.shape:
        raise ValueError(f"expected a matrix with rows and columns, got a tensor of shape {tuple(W.shape)}")


def _checked_rank(W: Tensor, r: int) -> None:
    _checked_matrix(W)
    full = min(W.shape)
    if not 1 <= r <= full:
        raise ValueError(f"r is {r}, but a {W.shape[0]} x {W.shape[1]} matrix has ranks 1 to {full}: choose one")


def best_rank_r(W: Float[Tensor, "d_out d_in"], r: int) -> Float[Tensor, "d_out d_in"]:
    """The matrix of rank at most `r` that is nearest to `W`, in W's dtype.

    It keeps the `r` largest singular values. No matrix of rank `r` is nearer in the Frobenius norm (Eckart
    and Young, 1936, https://doi.org/10.1007/BF02288367), nor in the spectral norm. Raises ValueError when `W`
    is not a matrix or `r` is not between 1 and its smaller side.
    """
    _checked_rank(W, r)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r] * S[:r] @ Vh[:r]


def best_factors(W: Float[Tensor, "d_out d_in"], r: int) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]:
    """`B` (d_out, r) and `A` (r, d_in) whose product is :func:`best_rank_r`.

    Each takes the square root of the singular values, and lies in memory row by row, as a layer's weight does: a
    product with one that doesn't rounds otherwise. Raises ValueError as :func:`best_rank_r` does.
    """
    _checked_rank(W, r)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    root = S[:r].sqrt()
    return (U[:, :r] * root).contiguous(), (root[:, None] * Vh[:r]).contiguous()


def energy_captured(W: Float[Tensor, "d_out d_in"], r: int) -> float:
    """The share, from 0 to 1, of W's squared Frobenius norm that its best rank-`r` approximation holds.

    A zero matrix has nothing to capture: the share is 1. Raises ValueError as :func:`best_rank_r` does.
    """
    _checked_rank(W, r)
    squares = torch.linalg.svdvals(W.double()) ** 2
    total = squares.sum().item()
    return squares[:r].sum().item() / total if total else 1.0


def relative_spectrum(W: Float[Tensor, "d_out d_in"]) -> list[float]:
    """The singular values of `W` as multiples of the largest, so that the first is 1.

    Raises ValueError for a zero matrix.
    """
    _checked_matrix(W)
    S = torch.linalg.svdvals(W.double())
    if S[0] == 0:
        raise ValueError("a matrix of zeros has no largest singular value to divide by")
    return (S / S[0]).tolist()


def noise_like(W: Float[Tensor, "d_out d_in"], generator: torch.Generator | None = None) -> Float[Tensor, "d_out d_in"]:
    """Gaussian noise of W's shape, dtype and Frobenius norm: a matrix without any structure."""
    _checked_matrix(W)
    noise = torch.randn(W.shape, dtype=W.dtype, generator=generator).to(W.device)
    return noise * (torch.linalg.norm(W) / torch.linalg.norm(noise))


# -------------------------------------------------------------------------------------------------- counting


def _checked_sizes(d_in: int, d_out: int, r: int = 1) -> None:
    for name, value in (("d_in", d_in), ("d_out", d_out), ("r", r)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def lora_parameters(d_in: int, d_out: int, r: int) -> int:
    """The parameters of A (r, d_in) and B (d_out, r) together. Raises ValueError for a size below 1."""
    _checked_sizes(d_in, d_out, r)
    return r * (d_in + d_out)


def saving(d_in: int, d_out: int, r: int) -> float:
    """How many times fewer parameters a rank-`r` update has than the weight.

    Raises ValueError for a size below 1.
    """
    return d_in * d_out / lora_parameters(d_in, d_out, r)


def break_even_rank(d_in: int, d_out: int) -> int:
    """The largest rank at which A and B have fewer parameters than the weight has; 0 when there is none.

    Raises ValueError for a size below 1.
    """
    _checked_sizes(d_in, d_out)
    return (d_in * d_out - 1) // (d_in + d_out)


def forward_flops(d_in: int, d_out: int, r: int, tokens: int) -> dict[str, int]:
    """Floating-point operations of `tokens` rows through a layer with LoRA, for three orders of the sum.

    A product of an (a, b) and a (b, c) matrix counts 2abc, an addition of matrices one an entry. Raises
    ValueError for a size below 1.
    """
    _checked_sizes(d_in, d_out, r)
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, not {tokens}")
    base = 2 * tokens * d_in * d_out
    build = 2 * d_out * r * d_in
    return {
        "W0 x + B(A x)": base + 2 * tokens * r * (d_in + d_out) + tokens * d_out,
        "W0 x + (BA) x": base + build + base + tokens * d_out,
        "(W0 + BA) x": build + d_in * d_out + base,
    }


# -------------------------------------------------------------------------------------- forward and backward


def lora_forward(
    x: Float[Tensor, "n d_in"],
    W0: Float[Tensor, "d_out d_in"],
    A: Float[Tensor, "r d_in"],
    B: Float[Tensor, "d_out r"],
    s: float,
) -> Float[Tensor, "n d_out"]:
    """``W0 x + s B (A x)`` for every row x, without ever building the matrix B A."""
    return x @ W0.T + s * ((x @ A.T) @ B.T)


def lora_gradients(
    x: Float[Tensor, "n d_in"],
    g: Float[Tensor, "n d_out"],
    A: Float[Tensor, "r d_in"],
    B: Float[Tensor, "d_out r"],
    s: float,
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """The loss's gradients with respect to A and B, in that order.

    `x` holds the layer's inputs and `g` the loss's gradient with respect to the layer's outputs, a row for
    each token. For one token, as columns, they are ``s B^T g x^T`` and ``s g (A x)^T``; a batch sums them.
    """
    return s * (g @ B).T @ x, s * g.T @ (x @ A.T)
