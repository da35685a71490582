"""Ask an OpenAI-compatible server of this machine many things at once, and check every answer.

    python -m tools.load_test       chapter 12's server and llama.cpp's, with 1 to 64 adapters -> serving.json
    python -m tools.serve_vllm      the same for vLLM, which has an environment of its own

Generators of load (`vllm bench serve`, guidellm, locust) count requests and don't look at the answers. Here each is
compared with what the same server answered to the same prompt alone: an adapter that is mixed up under load is what a
server of many adapters has to be tested for. Requests are streamed, so that the time to the first token is seen. The
number of requests and their time are bounded, and no address but this machine's own is asked.
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from safetensors.torch import load_file, save_file

from tools.ensemble import provenance, write
from utils.files import replaced_folder
from utils.lora.adapter_config import CONFIG
from utils.lora.checkpoint import WEIGHTS
from utils.models import ASSETS, TINY_DIR
from utils.tinyworld import task_examples
from utils.train import adapter_dir

if TYPE_CHECKING:
    from openai import OpenAI

OUT = ASSETS / "measurements" / "serving.json"
TASKS = ("style", "sentiment", "translation", "summarization")
COUNTS = (1, 4, 16, 64)
TOKENS = 24
MOST_REQUESTS = 2_000

Asked = tuple[str, str]  # the adapter's name, and what a user says
Extra = Callable[[str], Mapping[str, Any]]  # what a request says beside the prompt, from the adapter's name


@dataclass(frozen=True)
class Load:
    """What came of a load test: latencies are of whole answers, in seconds; p50 is the median, p95 nearly the worst."""

    requests: int
    at_once: int
    adapters: int
    failed: int
    wrong: int
    p50: float
    p95: float
    first_token_p50: float
    tokens_a_second: float


def loopback(url: str) -> str:
    """`url` itself. Raises ValueError when it leads to another machine than this one."""
    host = urlsplit(url).hostname or ""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(f"{url} isn't this machine: load tests are run against 127.0.0.1 only")
    return url


def one(client: OpenAI, asked: Asked, extra: Extra) -> tuple[str, float, float, int]:
    """A greedy answer, the seconds until its first token and until its end, and how many pieces it came in."""
    name, words = asked
    began, first, pieces = time.perf_counter(), 0.0, []
    stream = client.chat.completions.create(
        messages=[{"role": "user", "content": words}], temperature=0, max_tokens=TOKENS, stream=True, **extra(name)
    )
    for chunk in stream:
        if chunk.choices and (text := chunk.choices[0].delta.content):
            first = first or time.perf_counter() - began
            pieces.append(text)
    return "".join(pieces).strip(), first, time.perf_counter() - began, len(pieces)


def load(client: OpenAI, asked: Sequence[Asked], extra: Extra, *, at_once: int = 8, seconds: float = 300.0) -> Load:
    """Ask each of `asked` alone and remember the answer; then all of them, `at_once` at a time, and compare.

    What isn't begun after `seconds` counts as failed. Raises ValueError for another machine's address, no requests, or
    more than MOST_REQUESTS.
    """
    loopback(str(client.base_url))
    if not 0 < len(asked) <= MOST_REQUESTS:
        raise ValueError(f"{len(asked)} requests: ask 1 to {MOST_REQUESTS:,}")
    alone = {pair: one(client, pair, extra)[0] for pair in dict.fromkeys(asked)}
    until = time.perf_counter() + seconds

    def timed(pair: Asked) -> tuple[str, float, float, int] | None:
        try:
            return one(client, pair, extra) if time.perf_counter() < until else None
        except Exception:  # counted: whatever a server does to a client
            return None

    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(timed, asked))
    took = time.perf_counter() - began
    came = [(answer, pair) for answer, pair in zip(found, asked, strict=True) if answer]
    whole = sorted(answer[2] for answer, _ in came) or [float("nan")]
    return Load(
        requests=len(asked),
        at_once=at_once,
        adapters=len({name for name, _ in asked}),
        failed=len(asked) - len(came),
        wrong=sum(answer[0] != alone[pair] for answer, pair in came),
        p50=round(statistics.median(whole), 3),
        p95=round(whole[min(len(whole) - 1, int(0.95 * len(whole)))], 3),
        first_token_p50=round(statistics.median([answer[1] for answer, _ in came] or [float("nan")]), 3),
        tokens_a_second=round(sum(answer[3] for answer, _ in came) / took, 1),
    )


def many_adapters(folder: Path, count: int) -> dict[str, Path]:
    """`count` adapters in `folder`, by their names: the course's four with lora_B scaled, so that no two are equal."""
    made = {}
    for number in range(count):
        task, step = TASKS[number % len(TASKS)], number // len(TASKS)
        path = folder / f"{task}-{step:02d}"
        source = adapter_dir(task)
        tensors = load_file(source / WEIGHTS)
        scaled = {name: t * (1 - 0.02 * step) if "lora_B" in name else t for name, t in tensors.items()}
        with replaced_folder(path) as scratch:
            save_file(scaled, scratch / WEIGHTS, {"format": "pt"})
            (scratch / CONFIG).write_bytes((source / CONFIG).read_bytes())
        made[path.name] = path
    return made


def questions(names: Sequence[str], requests: int) -> list[Asked]:
    """`requests` pairs that go round the adapters, each asked what its task is about."""
    rows = {task: task_examples(task, "test", 8) for task in TASKS}  # type: ignore[arg-type]
    pairs = []
    for number in range(requests):
        name = names[number % len(names)]
        pairs.append((name, rows[name.partition("-")[0]][(number // len(names)) % 8].prompt))
    return pairs


def of_chapter_12(folder: Path, adapters: Mapping[str, Path], requests: int) -> Load:
    """transformers' server behind the course's gateway: a whole model for each adapter."""
    from utils.inference import serving

    serving.stage(folder, str(TINY_DIR), adapters)
    with serving.serve(folder, timeout=180, request_timeout=300) as server, server.client() as client:
        return load(client, questions(list(adapters), requests), lambda name: {"model": name})


def of_llama_cpp(folder: Path, adapters: Mapping[str, Path], requests: int) -> Load:
    """llama.cpp's server, all adapters beside one base, eight slots."""
    from utils.export import LlamaCpp, to_gguf

    base = to_gguf(TINY_DIR, folder / "base.gguf", "f32")
    files = {name: to_gguf(path, folder / f"{name}.gguf", "f32") for name, path in adapters.items()}
    with LlamaCpp(base, files, slots=8, threads=2) as server, server.client() as client:
        return load(
            client,
            questions(list(adapters), requests),
            lambda name: {"model": "base", "extra_body": {"lora": server.lora(name)}},
        )


SERVERS: dict[str, Callable[[Path, Mapping[str, Path], int], Load]] = {
    "chapter 12": of_chapter_12,
    "llama.cpp": of_llama_cpp,
}


def record(rows: Mapping[str, Sequence[Load]], out: Path) -> None:
    """Add the rows of each server, by its name, to the record at `out`."""
    found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"servers": {}}
    head = {
        "what": f"tiny Llama, {TOKENS} tokens at most an answer, streamed, greedy; each answer compared with the same "
        "server's answer to the prompt alone",
        "tool": "tools/load_test.py, tools/serve_vllm.py",
        "seed": None,
        **provenance("cpu"),
        "cores": os.cpu_count(),
    }
    servers = found["servers"] | {name: [asdict(row) for row in loads] for name, loads in rows.items()}
    write(out, head | {"servers": servers})


def table(servers: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The record as a table of text."""
    head = f"{'server':12}{'adapters':>9}{'failed':>8}{'wrong':>7}"
    lines = [head + f"{'p50 s':>8}{'p95 s':>8}{'first':>8}{'tokens/s':>10}"]
    for name, rows in servers.items():
        lines += [
            f"{name:12}{r['adapters']:9}{r['failed']:8}{r['wrong']:7}{r['p50']:8.2f}{r['p95']:8.2f}"
            f"{r['first_token_p50']:8.2f}{r['tokens_a_second']:10.0f}"
            for r in rows
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=f"of {', '.join(SERVERS)} (default: all)")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--adapters", type=int, nargs="*", default=list(COUNTS))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if unknown := set(args.servers) - SERVERS.keys():
        parser.error(f"there is no server {', '.join(sorted(unknown))}: choose from {', '.join(SERVERS)}")
    for name in args.servers or SERVERS:
        loads = []
        for count in args.adapters:
            with tempfile.TemporaryDirectory() as folder:
                adapters = many_adapters(Path(folder) / "adapters", count)
                loads.append(SERVERS[name](Path(folder) / "served", adapters, args.requests))
            gc.collect()
            print(table({name: [asdict(loads[-1])]}), flush=True)
        record({name: loads}, args.out)


if __name__ == "__main__":
    main()
