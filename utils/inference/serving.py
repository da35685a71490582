"""A local server that speaks OpenAI's protocol: `transformers serve` behind a gateway, started, watched and stopped.

:func:`stage` lays out a folder with the base and a subfolder for each adapter; :func:`serve` runs the server in that
folder, so that a request's ``model`` field is the subfolder's name. Nothing is fetched: the server runs offline.
Clients talk to :mod:`utils.inference.gateway`, in a thread of this process, which keeps OpenAI's rules.

What a served adapter's folder must hold is more than what PEFT saves. transformers' server reads `config.json` and the
tokenizer from the folder that is asked for; and where it finds a `config.json` beside an adapter, it takes the folder
for a whole model with an adapter in it and wants the weights there too. So :func:`stage` puts the base's files beside
the adapter, the weights as links. In memory nothing is shared: the server holds the base once for each adapter that was
asked for.

Within one process several requests can share a base: :func:`for_request` gives each the model with an adapter of its
own.

Attributes:
    BASE: The name under which the base without an adapter is served.
    LONGEST: The longest time-out, in seconds: ten days.
    PACKAGES: What the server needs beside transformers.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from safetensors import safe_open
from torch import nn

from utils.inference.chat_request import BASE, Refused, Staged, staged
from utils.inference.loopback import HOST, free_port, local_client, local_opener
from utils.lora import fingerprint
from utils.lora.adapter_config import CONFIG, read_settings, short, targeted
from utils.lora.checkpoint import WEIGHTS, check_files, other_model, read_header, refuse_untouched
from utils.models.device import ROOT

if TYPE_CHECKING:
    from openai import OpenAI

    from utils.inference.gateway import Gateway

ModelT = TypeVar("ModelT", bound=nn.Module)

_OF_A_MODEL = (".safetensors", ".json", ".jinja", ".model", ".txt")
_GENERATION = "generation_config.json"
LONGEST = 864_000
PACKAGES = ("fastapi", "uvicorn", "pydantic", "openai")
_EMBEDDING = r".*\b(embed_tokens|wte|embed_in|word_embeddings)\.weight"

# The server ends with whoever started it: when that process dies, its end of the pipe closes, and the read returns.
# Then nobody else is left to delete the folder of the log.
_PROGRAM = """
import os, shutil, sys, threading
def watch(scratch):
    sys.stdin.buffer.read()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)
threading.Thread(target=watch, args=[sys.argv.pop(1)], daemon=True).start()
sys.path.append(sys.argv.pop(1))
from transformers.cli.serving import chat_completion
from transformers.cli.transformers import main
from utils.inference.closed_stream import ClosedStream
chat_completion.StreamingResponse = ClosedStream
main()
"""


class ServingUnavailable(RuntimeError):
    """The server can't be started, or died. Says what to do."""


# ------------------------------------------------------------------------------------- several requests, one base


def for_request(model: ModelT, adapter: str | None = None) -> ModelT:
    """The model as one request sees it: modules of its own over the tensors of `model`, frozen.

    Which adapter of a PEFT model is active is written in its modules, and so is what ``disable_adapter``,
    ``delete_adapter``, ``train`` or :func:`utils.lora.multi_adapter.route` change. A request that takes longer than one
    call, such as a stream, would end under whatever another one asked for. Nothing of that reaches it here. Modules are
    copied (2,700 of Llama-2-7B with LoRA take about a second) and tensors are not, so a merge does reach it.

    `adapter` is the name of one of a PEFT model's adapters, or :data:`BASE` for none; None leaves what is active now.
    Raises ValueError for another name, or when adapters are merged into the weights that are shared.
    """
    known = [BASE, *getattr(model, "peft_config", {})]
    if adapter is not None:
        if adapter not in known:
            raise ValueError(f"there is no adapter {adapter!r}: choose among {', '.join(known)}")
        if any(getattr(module, "merged", False) for module in model.modules()):
            raise ValueError("an adapter is merged into the weights, which all requests share: unmerge it first")
    shared: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for p in model.parameters():  # a kind of its own, such as bitsandbytes', is frozen as it is
        shared[id(p)] = nn.Parameter(p.detach(), requires_grad=False) if type(p) is nn.Parameter else p
    own = copy.deepcopy(model, shared)
    if adapter == BASE and len(known) > 1:
        cast(Any, own).base_model.disable_adapter_layers()
    elif adapter not in (None, BASE):
        cast(Any, own).set_adapter(adapter, inference_mode=True)
    return own


# ------------------------------------------------------------------------------------------------ what is served


def stage(folder: str | Path, base: str, adapters: Mapping[str, str | Path], *, do_sample: bool = True) -> list[str]:
    """Lay out `folder` for :func:`serve`: the base model under the name "base", and each adapter under its own.

    `base` is a folder or the id of a model in the Hub's cache, such as ``model.name_or_path``; `adapters` maps a name
    to a PEFT folder. A merged model is a whole one: pass its folder as the `base` of a stage of its own. `do_sample` is
    written into the generation settings: the server takes a request's ``temperature`` but leaves sampling switched on
    or off as it finds it, and without it the temperature does nothing (0 switches it off for a request). Returns the
    names.

    Nothing is laid out when anything is wrong: raises FileNotFoundError for a folder that holds no model or no adapter
    in safetensors. Raises ValueError for a name that a request can't carry; for a base whose settings or tokenizer
    can't be loaded; for an adapter that is damaged or of another base (:func:`utils.lora.checkpoint.check_files`); for
    what lies where it would be laid out; and when `folder` holds another model, which could be asked for too, or a part
    of one. Of the base's weights PEFT writes nothing into an adapter: one of another base of the same name and shape
    can be told only when this course saved it.
    """
    folder, source = Path(folder), _model_folder(base)
    for name, path in adapters.items():
        good = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name)
        if not good or name == BASE or name.endswith(".gguf"):
            raise ValueError(
                f"{short(name)} can't name an adapter in a request: use letters, digits, '-' and '_', 100 at the most, "
                f"and not {BASE!r}, which is the model without one"
            )
        for file in (CONFIG, WEIGHTS):
            if not os.path.isfile(Path(path) / file):
                raise FileNotFoundError(
                    f"the adapter {name!r} has no {file}: save it with model.save_pretrained(folder)"
                )
        _check_adapter(Path(path), source, base)
    files = [file for file in sorted(source.iterdir()) if file.suffix in _OF_A_MODEL and file.is_file()]
    settings = _generation_settings(source, do_sample)
    _check_base(source)
    plan = {BASE: files}
    plan |= {name: [*files, Path(path) / WEIGHTS, Path(path) / CONFIG] for name, path in adapters.items()}
    _check_room(folder, plan)
    for name, sources in plan.items():
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        for file in sources:
            at = target / file.name
            at.unlink(missing_ok=True)
            if file.suffix == ".safetensors" and file.name != WEIGHTS:
                _link(file.resolve(), at)
            else:
                shutil.copyfile(file, at)
        (target / _GENERATION).write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return list(plan)


def _check_room(folder: Path, plan: Mapping[str, list[Path]]) -> None:
    """Raise ValueError when laying out `plan` would overwrite one of its own files, or mix two models."""
    if left := [path.parent.name for path in sorted(folder.glob("*/config.json")) if path.parent.name not in plan]:
        raise ValueError(
            f"{folder.name} holds {', '.join(left)} already, which could be asked for too: take an empty folder, or "
            "delete what isn't to be served"
        )
    targets = {(folder / name).resolve() for name in plan}
    for name, sources in plan.items():
        if inside := next((file for file in sources if file.resolve().parent in targets), None):
            raise ValueError(
                f"{inside} lies in {folder.name}, where what is served is laid out, and would be overwritten: take "
                "another folder"
            )
        known = {_GENERATION, *(file.name for file in sources)}
        for file in sorted((folder / name).glob("*")):
            if file.suffix in _OF_A_MODEL and file.name not in known:
                raise ValueError(
                    f"{folder.name}/{name} holds {file.name}, which is of another model: take an empty folder, or "
                    "delete it"
                )


def _model_folder(base: str) -> Path:
    folder = Path(base)
    if not folder.is_dir():
        from transformers.utils import cached_file

        try:
            found = cached_file(str(base), "config.json", local_files_only=True)
        except OSError:
            found = None
        if found is None:
            raise FileNotFoundError(
                f"{base} is no folder, and no model of that name is in the Hub's cache: load it once with load_base()"
            ) from None
        folder = Path(found).parent
    if (folder / CONFIG).is_file():
        raise ValueError(f"{folder.name} is an adapter's folder, and no base: pass it among the adapters")
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder.name} holds no model: config.json or its safetensors are missing")
    return folder


def _check_base(source: Path) -> None:
    """Raise ValueError when the base's settings or its tokenizer can't be loaded."""
    try:
        model = Staged(source)
        _ = model.context, model.tokenizer
    except Refused as error:
        raise ValueError(f"the base can't be served. {error}") from None


def _check_adapter(adapter: Path, source: Path, base: str) -> None:
    """Raise what :func:`check_files` raises, and ValueError when the adapter isn't of the base whose files are in
    `source`: as :func:`utils.lora.checkpoint.fitting_adapter` does with a model, by what the files tell.
    """
    if (files := check_files(adapter)) is None:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING

        if (kind := read_settings(adapter).get("peft_type")) not in PEFT_TYPE_TO_CONFIG_MAPPING:
            raise ValueError(f"{adapter / CONFIG} names no kind of adapter that PEFT knows, but {short(kind)}")
        return
    listed = targets if isinstance(targets := files.config.get("target_modules"), list) else []
    weights = {name: file for file in source.glob("*.safetensors") for name in read_header(file).entries}
    layers = [name.removesuffix(".weight") for name in weights]
    meant = [t for t in listed if any(targeted({"target_modules": [t]}, n) for n in layers)]
    refuse_untouched({"target_modules": meant}, files.matrices, adapter)
    compared = False
    for name, file in weights.items():
        pair = files.matrices.get(name.removesuffix(".weight"))
        embedding = files.base if re.fullmatch(_EMBEDDING, name) else None
        if not (pair or embedding):
            continue
        difference = None
        with safe_open(file, "pt") as opened:
            if pair:
                entry = opened.get_slice(name)
                needed, found = tuple(entry.get_shape()), (len(pair["lora_B"]), pair["lora_A"].shape[1])
                if entry.get_dtype() in ("F32", "F16", "BF16") and needed != found:
                    difference = f"it corrects {name} of {found}, which is {needed} here"
            elif embedding:
                compared = True
                if other := fingerprint.difference(embedding, opened.get_tensor(name)):
                    difference = f"of the embedding that it was trained with, {other}"
        if difference:
            raise ValueError(f"the adapter in {adapter.name!r} was trained on another base than {base}: {difference}")
    written = files.config.get("base_model_name_or_path")
    if not compared and other_model(written, base):
        raise ValueError(f"the adapter in {adapter.name!r} was trained on {written}, and the base here is {base}")


def _link(file: Path, at: Path) -> None:
    try:
        at.symlink_to(file)
    except OSError:  # Windows without the right to make links
        shutil.copyfile(file, at)


def _generation_settings(source: Path, do_sample: bool) -> dict[str, Any]:
    path = source / _GENERATION
    try:
        settings = json.loads(path.read_bytes()) if path.is_file() else {}
        return {**settings, "do_sample": do_sample}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({short(error)}): copy the model again") from None


# ------------------------------------------------------------------------------------------------------ the server


class Upstream:
    """transformers' server, in a process of its own that ends with this one."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path) -> None:
        self.process, self.port, self._log, self._kept = process, port, log, ""

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else self._kept

    def note(self, line: str) -> None:
        """Add a line to the log."""
        with self._log.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{line}\n")

    def stop(self) -> None:
        """Stop the process, gently at first, and wait until it is gone. Stopping twice is fine. The log stays."""
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self._kept = self.log


class Server:
    """A running server: `url` is what a client calls ``base_url``, `folder` holds the models to ask for.

    An interrupt (Ctrl-C, or a notebook's) reaches this process alone: the server goes on until its block ends.
    """

    def __init__(
        self, upstream: Upstream, gateway: Gateway, folder: Path, api_key: str | None, request_timeout: float
    ) -> None:
        self.folder, self.port, self.url = folder, gateway.port, f"http://{HOST}:{gateway.port}/v1"
        self.upstream, self._gateway, self._api_key, self._request_timeout = upstream, gateway, api_key, request_timeout

    @property
    def running(self) -> bool:
        """Whether requests are answered. When transformers' server has died, each gets a 503 that says so."""
        return self.upstream.running and self._gateway.running

    @property
    def log(self) -> str:
        """What the server wrote so far: a line for each request, and the tracebacks of those that failed.

        It can still be read when the block has ended.
        """
        return self.upstream.log

    def client(self, **settings: Any) -> OpenAI:
        """The real client of the `openai` package for this server; `settings` go to it (timeout, max_retries).

        It has the server's key, waits a little longer than the server's own time-out, and tries once. A proxy that the
        environment names is left aside.
        """
        own: dict[str, Any] = {"timeout": self._request_timeout + 10, "api_key": self._api_key or "none is needed"}
        return local_client(self.url, **own | settings)

    def stop(self) -> None:
        """Stop the gateway and transformers' server, and wait until both are gone. Stopping twice is fine."""
        self._gateway.stop()
        self.upstream.stop()


@contextmanager
def serve(
    folder: str | Path,
    *,
    port: int | None = None,
    timeout: float = 90.0,
    device: str = "cpu",
    api_key: str | None = None,
    request_timeout: float = 120.0,
) -> Iterator[Server]:
    """The models of `folder` behind OpenAI's protocol, ready when the block begins and gone when it ends.

    What can be asked for is what :func:`stage` laid out, and nothing else on the disk. `port` None takes a free one; a
    request that comes before the block begins waits. `timeout` is the longest wait until the server is ready, and
    `request_timeout` the longest time for an answer, with waiting in line and loading the model, both in seconds. With
    an `api_key` a request without it gets a 401. It listens on this machine only, loads a model at the first request
    for it, and computes in float32 on the CPU.

    transformers' own server, which the gateway asks, listens on a port of its own and has no key: whoever else works on
    this machine could ask it for any model on the disk. Raises ServingUnavailable when a package is missing, the port
    is taken, the server dies or isn't healthy in time, each with what to do; FileNotFoundError when there is no such
    folder, or no model in it; ValueError for an `api_key` that no header can carry, or a time that isn't a number above
    0 (:data:`LONGEST` at the most).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.name} is no folder: lay one out with stage(folder, base, adapters)")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ServingUnavailable(
            f"the server needs {', '.join(missing)}: run  pip install {' '.join(missing)}  and restart Python"
        )
    if api_key is not None and not (isinstance(api_key, str) and re.fullmatch(r"[!-~]([ -~]*[!-~])?", api_key)):
        raise ValueError(
            "an api_key is a text of ASCII letters, digits and signs that isn't empty and has no space around it, for "
            "it travels in a header; leave it out to serve without one"
        )
    for name, seconds in (("timeout", timeout), ("request_timeout", request_timeout)):
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not (number and 0 < seconds <= LONGEST):
            raise ValueError(f"{name} is a number of seconds above 0, {LONGEST:,} at the most, not {short(seconds)}")
    from utils.inference import gateway

    with _bound(port) as bound, tempfile.TemporaryDirectory(prefix="serving-", ignore_cleanup_errors=True) as scratch:
        models = staged(folder.resolve())
        if not models:
            raise FileNotFoundError(f"{folder.name} holds no model: lay it out with stage(folder, base, adapters)")
        upstream = _started(folder.resolve(), timeout, device, Path(scratch))
        try:
            app = gateway.build(
                models, f"http://{HOST}:{upstream.port}/v1", api_key=api_key, request_timeout=request_timeout,
                log=upstream.note, alive=lambda: upstream.running,
            )  # fmt: skip
            server = Server(upstream, gateway.Gateway(app, bound), folder.resolve(), api_key, request_timeout)
            try:
                server._gateway.start()
                yield server
            finally:
                server.stop()
        finally:
            upstream.stop()


def _started(folder: Path, timeout: float, device: str, scratch: Path) -> Upstream:
    """A healthy server. A free port can be taken by another between looking and starting: then try the next."""
    for attempt in range(3):
        upstream = _launch(folder, free_port(), device, scratch)
        try:
            _wait_until_healthy(upstream, timeout)
        except BaseException as error:
            upstream.stop()
            raced = "address already in use" in upstream.log.lower()
            if not (isinstance(error, ServingUnavailable) and raced):
                raise
            if attempt == 2:
                raise ServingUnavailable(_taken(upstream.port)) from None
        else:
            return upstream
    raise AssertionError("unreachable")


def _launch(folder: Path, port: int, device: str, scratch: Path) -> Upstream:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(scratch / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    arguments = ["serve", "--host", HOST, "--port", str(port), "--device", device]
    arguments += ["--dtype", "float32"] if device == "cpu" else []
    log = scratch / "server.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(scratch), str(ROOT), *arguments], cwd=folder, env=environment,
            stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
            # an interrupt goes to a whole group of processes: this one is in a group of its own
            start_new_session=True, creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )  # fmt: skip
    return Upstream(process, port, log)


def _wait_until_healthy(upstream: Upstream, timeout: float) -> None:
    plain = local_opener()
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not upstream.running:
            raise ServingUnavailable(f"the server ended before it was ready. Its last words:\n{_tail(upstream.log)}")
        try:
            with plain.open(f"http://{HOST}:{upstream.port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServingUnavailable(
        f"the server wasn't ready after {timeout:g} seconds; on a slow machine pass a larger timeout. Its last words:\n"
        f"{_tail(upstream.log)}"
    )


def _tail(log: str, lines: int = 8) -> str:
    return "\n".join(log.strip().splitlines()[-lines:]) or "(nothing)"


def _bound(port: int | None) -> socket.socket:
    """A socket that listens at `port`, or at a free one: bound alone, a second one could be bound to the port too."""
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65_535):
        raise ServingUnavailable(f"a port is a whole number from 1 to 65535, not {port!r}; leave it out for a free one")
    bound = socket.socket()
    if os.name != "nt":
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port or 0))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        if isinstance(error, PermissionError):
            raise ServingUnavailable(f"port {port} needs an administrator's rights: take one above 1023") from None
        raise ServingUnavailable(_taken(cast(int, port))) from None
    return bound


def _taken(port: int) -> str:
    return f"port {port} is taken by another program: stop that, choose another port, or leave it out for a free one"
