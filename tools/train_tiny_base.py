"""Train the tiny base model from nothing and write it, with its tokenizer and its model card, to assets/tiny-llama.

    python -m tools.train_tiny_base                        the shipped model (a GPU: some minutes)
    python -m tools.train_tiny_base --steps 20 --documents 2000 --out /tmp/tiny     a trial on a CPU

It runs on a CPU or a GPU, for a number of steps, never for a number of seconds. With --checkpoint FILE it saves its
state every --checkpoint-every steps, and goes on from there when it is started again with the same arguments.

Three kinds of batches teach copying first and stories second: one step in four repeats random tokens, and the corpus
comes in two parts, one in which four texts in five are echoes, read mostly at the beginning, and one in which one in
four is.

Attributes:
    FIRST_PART_SHARE: The share of the documents that make the echo-heavy first part of the corpus.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import sys
import time
from multiprocessing import Pool
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from utils import tinyworld
from utils.evaluate import gates
from utils.evaluate.metrics import perplexity
from utils.files import replaced_folder

ROOT = Path(__file__).resolve().parents[1]

VOCABULARY, LENGTH, CONTEXT = 1024, 256, 512
PAD_ID, END_ID = 0, 1
FIRST_PART_SHARE = 0.25
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ raise_exception('the tiny model knows the roles user and assistant, not ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _documents(job: tuple[int, int, float]) -> list[str]:
    seed, n, echoes = job
    return tinyworld.documents(n, seed, echoes)


def generate_corpus(n: int, seed: int, workers: int) -> tuple[list[str], list[str]]:
    """The corpus in its two parts, made by `workers` processes; the same for any number of them."""
    block = 500
    first, rest = max(1, round(n * FIRST_PART_SHARE / block)), max(1, round(n * (1 - FIRST_PART_SHARE) / block))
    jobs = [(seed + i, block, 0.8 if i < first else 0.25) for i in range(first + rest)]
    with Pool(workers) as pool:
        blocks = list(tqdm(pool.imap(_documents, jobs), total=len(jobs), desc="writing the corpus"))
    return [t for b in blocks[:first] for t in b], [t for b in blocks[first:] for t in b]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 1,024 entries with the course's special tokens and chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [tinyworld.PAD, tinyworld.END, tinyworld.USER, tinyworld.ASSISTANT]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=tinyworld.PAD, eos_token=tinyworld.END, model_max_length=CONTEXT,
        extra_special_tokens=[tinyworld.USER, tinyworld.ASSISTANT],
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one row of ids, behind each of them the end mark."""
    tokenizer.backend_tokenizer.no_padding()  # an earlier padded batch leaves its setting behind
    ids: list[int] = []
    for start in range(0, len(texts), 20_000):
        for encoding in tokenizer.backend_tokenizer.encode_batch(texts[start : start + 20_000]):
            ids.extend(encoding.ids)
            ids.append(END_ID)
    return torch.tensor(ids, dtype=torch.int16)


def config() -> LlamaConfig:
    """1.77 million parameters. Every width is a multiple of 64, so that 4-bit blocks fit."""
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True, rms_norm_eps=1e-5,
        pad_token_id=PAD_ID, bos_token_id=None, eos_token_id=END_ID,
    )  # fmt: skip


def batch_at(step: int, steps: int, parts: tuple[torch.Tensor, torch.Tensor], size: int, seed: int) -> torch.Tensor:
    """The batch of a step. It depends on nothing but the step, so a resumed run sees what it would have seen."""
    generator = torch.Generator(parts[0].device).manual_seed(seed * 1_000_003 + step)
    draw = {"generator": generator, "device": parts[0].device}
    done = step / steps
    if step % 4 == 3:  # random tokens, repeated: nothing helps but copying
        half = 32
        row = torch.randint(4, 64 if done < 0.1 else VOCABULARY, (size, LENGTH // (2 * half), half), **draw)
        return torch.cat([row, row], 2).reshape(size, LENGTH)
    choose_first = torch.rand(1, generator=generator, device=parts[0].device).item() < max(0.15, 0.8 - 2 * done)
    part = parts[0 if choose_first else 1]
    start = torch.randint(0, part.numel() - LENGTH, (size, 1), **draw)
    return part[start + torch.arange(LENGTH, device=part.device)].long()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A ramp of 200 steps (a tenth of a short run), then a half cosine down to 3% of the peak."""
    ramp = min(200, max(1, steps // 10))
    return peak * min(1.0, (step + 1) / ramp) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def save_checkpoint(path: Path, state: dict) -> None:
    """Write beside the place and rename, so that an interrupted write leaves the older checkpoint whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def fit(
    model: LlamaForCausalLM, parts: tuple[torch.Tensor, torch.Tensor], *, steps: int, size: int, lr: float, seed: int,
    checkpoint: Path | None, every: int, stop_after: int | None = None,
) -> list[tuple[int, float]]:  # fmt: skip
    """Train up to `steps` (or stop after `stop_after` of them) and return (step, loss on a text batch) for a curve."""
    device = parts[0].device
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05, fused=on_gpu)
    run = {"steps": steps, "size": size, "lr": lr, "seed": seed, "tokens": [part.numel() for part in parts]}
    first, curve = 0, []
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["run"] != run:
            sys.exit(
                f"{checkpoint} belongs to another run ({state['run']}, not {run}): delete it or repeat its arguments"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, curve = state["step"], [tuple(x) for x in state["curve"]]
    forward = torch.compile(model) if on_gpu else model
    model.train()
    last = min(steps, stop_after or steps)
    bar = tqdm(range(first, last), initial=first, total=last, desc="training")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        ids = batch_at(step, steps, parts, size, seed)
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 4 == 0 and step % 100 == 0:
            curve.append((step, round(loss.item(), 4)))
            bar.set_postfix(loss=curve[-1][1])
        if checkpoint and ((step + 1) % every == 0 or step + 1 == last):
            save_checkpoint(checkpoint, {
                "run": run, "step": step + 1, "curve": curve, "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            })  # fmt: skip
    model.eval()
    return curve


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict:
    """The gates, the perplexity on held-out stories, and two stories to read."""
    requests = ["Tell me a story about a shy turtle named Zoe.", "Write a story about Kate the wolf."]
    return {
        "copy_accuracy": round(gates.copy_accuracy(model, tokenizer), 4),
        "hero_accuracy": round(gates.hero_accuracy(model, tokenizer), 4),
        "perplexity": round(perplexity(model, tokenizer, gates.held_out_stories(400)), 4),
        "samples": list(zip(requests, gates.tell_stories(model, tokenizer, requests), strict=True)),
    }


CARD = """---
license: apache-2.0
language: [en, fr]
library_name: transformers
pipeline_tag: text-generation
---

# tiny-llama: the base model of lora-zero-to-hero

A Llama of {parameters:,} parameters with its own byte-level BPE tokenizer, trained from nothing on texts that
`utils/tinyworld/` generates. It is made for lessons: it tells picture-book stories, copies what it reads, and knows
none of the course's tasks. It knows nothing about the real world and is of no use outside the course.

| | |
|---|---|
| architecture | Llama, tied embeddings |
| widths | hidden {hidden}, intermediate {intermediate}, vocabulary {vocabulary}, context {context} |
| layers | {layers}, with {heads} heads and {kv} key/value heads |
| size | {bytes:,} bytes of bf16 safetensors |
| data | {documents:,} generated texts, {tokens:,} tokens |
| kinds of text | stories, story requests in chat form, English and French scenes, echoes |
| training | {steps:,} steps of {size} x {length} tokens ({seen:,} tokens read), seed {seed} |
| optimizer | AdamW, peak rate {lr}, half-cosine decay |
| last loss | {loss} nats per token (a batch of text) |
| perplexity on held-out stories | {perplexity} |
| copying random words, tokens right | {copy:.1%} |
| hero kept through 200 requested stories | {hero:.1%} |
| made by | `{command}` |
| hardware | {hardware}, {minutes:.1f} minutes |
| licence | Apache-2.0; the data is generated by this repository's own code |

## Two stories (temperature 0.7)

{samples}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=192, help="sequences of 256 tokens in a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--documents", type=int, default=600_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "tiny-llama")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--checkpoint-every", type=int, default=1000)
    args = parser.parse_args()
    if args.steps < 1 or args.batch < 1 or args.documents < 1:
        parser.error("--steps, --batch and --documents must be at least 1")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no GPU here: leave the option out to train on the CPU")

    began = time.time()
    first, rest = generate_corpus(args.documents, args.seed * 1_000_000, args.workers)
    tasks = [f"{e.prompt} {e.answer}" for t in tinyworld.TASKS for e in tinyworld.task_examples(t, "train", 300)]
    tokenizer = train_tokenizer(random.Random(0).sample(rest, min(8000, len(rest))) + tasks)
    parts = tuple(tokenize(tokenizer, part).to(args.device) for part in (first, rest))
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    model = LlamaForCausalLM(config()).to(args.device)
    curve = fit(
        model, parts, steps=args.steps, size=args.batch, lr=args.lr, seed=args.seed,
        checkpoint=args.checkpoint, every=args.checkpoint_every,
    )  # fmt: skip
    model.to(torch.bfloat16)
    shipped = LlamaForCausalLM(config()).to(args.device)  # what a reader loads: bf16 weights that compute in float32
    shipped.load_state_dict(model.state_dict())
    found = measure(shipped.eval(), tokenizer)
    c, minutes = model.config, (time.time() - began) / 60
    hardware = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    parameters = sum(p.numel() for p in model.parameters())
    record = {
        "loss": curve, "parameters": parameters, "documents": len(first) + len(rest), "hardware": hardware,
        "tokens": sum(p.numel() for p in parts), "minutes": round(minutes, 2), **found,
    }  # fmt: skip
    card = CARD.format(
        parameters=parameters, hidden=c.hidden_size, layers=c.num_hidden_layers, heads=c.num_attention_heads,
        kv=c.num_key_value_heads, intermediate=c.intermediate_size, vocabulary=c.vocab_size, context=CONTEXT,
        bytes=2 * parameters, documents=record["documents"], tokens=record["tokens"], steps=args.steps, size=args.batch,
        length=LENGTH, seen=args.steps * args.batch * LENGTH, lr=args.lr, seed=args.seed,
        loss=curve[-1][1] if curve else "not recorded", perplexity=found["perplexity"], copy=found["copy_accuracy"],
        hero=found["hero_accuracy"], command=shlex.join(["python", "-m", "tools.train_tiny_base", *sys.argv[1:]]),
        hardware=hardware, minutes=minutes, samples="\n\n".join(f"**{q}** {a}" for q, a in found["samples"]),
    )  # fmt: skip
    with replaced_folder(args.out) as folder:
        model.save_pretrained(folder)
        tokenizer.backend_tokenizer.no_padding()  # what measuring set is no property of the tokenizer
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in record.items() if k != "loss"}, indent=1, ensure_ascii=False))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
