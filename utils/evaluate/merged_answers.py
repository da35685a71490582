"""What a merge changes of a model's answers: logits on held-out examples, and the answers of a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from utils.data.chat import IGNORED, Example, collate, encode, token_id
from utils.models.device import ROOT
from utils.quant.absmax import relative_error
from utils.train.loop import in_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Answered(NamedTuple):
    """What a model makes of held-out examples, told the right answer so far at every token (teacher forcing).

    logits: for every answer token, end marks included, one example behind the other. right: for every example whether
    the most likely token was the right one at each place, which is when greedy decoding gives the right answer.
    """

    logits: Float[Tensor, "tokens vocabulary"]
    right: Bool[Tensor, " examples"]

    @property
    def accuracy(self) -> float:
        """The share, 0 to 1, of examples that greedy decoding gets right."""
        return float(self.right.float().mean())

    def changes(self, reference: Answered) -> Changes:
        """What another model makes of the same examples, compared with the reference's. Raises ValueError when the two
        don't have the same tokens and examples.
        """
        if self.logits.shape != reference.logits.shape or self.right.shape != reference.right.shape:
            raise ValueError(
                f"{len(self.right)} examples with {len(self.logits)} tokens can't be compared with the reference's "
                f"{len(reference.right)} with {len(reference.logits)}: ask both models the same"
            )
        p, q = (one.logits.double().log_softmax(dim=-1) for one in (reference, self))
        centred = [one.logits - one.logits.mean(dim=-1, keepdim=True) for one in (reference, self)]
        return Changes(
            nats=float((p.exp() * (p - q)).sum(dim=-1).mean()),
            tokens=int((p.argmax(-1) != q.argmax(-1)).sum()),
            lost=int((reference.right & ~self.right).sum()),
            won=int((~reference.right & self.right).sum()),
            drift=relative_error(*centred),
        )


class Changes(NamedTuple):
    """What differs between two models on the same examples. All five are the same when a model's logits are shifted at
    a token, all by one number, since that changes no prediction.

    nats: the Kullback-Leibler divergence from the reference, in nats, averaged over the answer tokens. tokens: at how
    many of them another token is the most likely one. lost, won: examples that only the reference has right, and that
    only this model has. drift: the size of the difference of the logits, each token's about its mean, over that of the
    reference's.
    """

    nats: float
    tokens: int
    lost: int
    won: int
    drift: float


@torch.inference_mode()
def answered(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int = 50
) -> Answered:
    """One pass over `examples` with their right answers: logits in float32 on the CPU, and what would be right.

    A tenth of the time that generating takes. Exact match may be higher by answers that spell the right text with
    other tokens. The model's mode is kept. Raises ValueError when there are no examples.
    """
    device = next(model.parameters()).device
    encoded = encode(tokenizer, examples)
    logits, right = [], []
    for start in range(0, len(encoded), batch_size):
        batch = {
            k: v.to(device) for k, v in collate(encoded[start : start + batch_size], token_id(tokenizer, "pad")).items()
        }
        labels = batch.pop("labels")[:, 1:]
        with in_mode(model, False):
            found = model(**batch).logits[:, :-1]
        counted = labels != IGNORED
        right.append(((found.argmax(-1) == labels) | ~counted).all(dim=1).cpu())
        logits.append(found[counted].float().cpu())
    return Answered(torch.cat(logits), torch.cat(right))


_CHILD = """
import json, sys
sys.modules["peft"] = None  # importing it would raise: the merged model must not need it
asked = json.load(sys.stdin)
import torch
torch.set_num_threads(asked["threads"])
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar
from utils.models.device import model_device
from utils.evaluate.metrics import complete
disable_progress_bar()
dtype = getattr(torch, asked["dtype"])
model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=dtype).to(model_device()).eval()
tokenizer = AutoTokenizer.from_pretrained(asked["folder"])
print(json.dumps(complete(model, tokenizer, asked["prompts"], max_new_tokens=asked["max_new_tokens"])))
"""


def answers_in_new_process(
    folder: str | Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    dtype: torch.dtype = torch.float32,
    timeout: float = 300,
) -> list[str]:
    """What the model saved in `folder`, with its tokenizer, answers greedily in a Python process of its own.

    The process sees nothing of this one but the files, computes in `dtype` with as many threads, never asks the Hub,
    and can't import PEFT. `timeout` is in seconds. Raises FileNotFoundError when `folder` holds no config.json,
    ValueError when there are no prompts, and RuntimeError with the process's last words when it fails or is too slow.
    """
    folder = Path(folder).resolve()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: save the model there first, with save_pretrained")
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"there are no prompts to answer: pass a list of texts, not {prompts!r}")
    asked = {
        "folder": str(folder),
        "prompts": list(prompts),
        "max_new_tokens": max_new_tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD], input=json.dumps(asked), env=environment, timeout=timeout,
            capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the new process took more than {timeout:g} seconds: raise timeout, or ask less") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"the new process failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return json.loads(done.stdout.strip().splitlines()[-1])
