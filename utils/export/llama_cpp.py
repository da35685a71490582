"""llama.cpp in this process: a GGUF file and its adapters, asked as transformers is asked, and its server for clients.

The package `xllamacpp` brings llama.cpp compiled, for the CPU, with the server that `llama-server` is. It is started on
a free port of this machine's loopback address and asked through it, so what is seen here is what any client sees. It
runs with one thread, keys and values in float32 and no flash attention: the same numbers every time, and close to
transformers'. Its C++ reads the files: open none from people you don't trust.

Attributes:
    INSTALL: How to get it.
"""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from utils.data.records import Message
from utils.evaluate.metrics import Answer
from utils.export.errors import ExportError
from utils.export.gguf_facts import GGUFFacts, gguf_facts
from utils.files import expanded
from utils.inference.loopback import HOST, local_client

if TYPE_CHECKING:
    from openai import OpenAI

INSTALL = "pip install xllamacpp"
_SECONDS = 600.0
_LONGEST = 4096  # positions, where a model has more: its keys and values are allocated at once

Prompt = str | Sequence[Message] | Sequence[int]


class LlamaCpp:
    """A model in llama.cpp, with adapters that every request may switch, weigh and mix.

    Use it in a ``with`` block, which frees it; or call :meth:`close`. Several may be open at a time. A prompt is what a
    user says, a conversation that waits for an answer (both go through the chat template in the file, as llama.cpp
    applies it), or token ids, which are taken as they are. `adapter` is the name of one, or a mapping from names to
    scales, which mixes them; None is the base alone. `scale` multiplies the adapter's own scaling: 1 is as trained.
    """

    def __init__(
        self,
        model: str | Path,
        adapters: Mapping[str, str | Path] | None = None,
        *,
        context: int | None = None,
        slots: int = 1,
        threads: int = 1,
        cache_mib: int = 0,
    ) -> None:
        """Load the GGUF file `model`, and `adapters`, files by the names they will be asked for by.

        `context` is in tokens, by default the model's own and 4,096 at most; `slots` is how many requests are computed
        at a time. `cache_mib` is llama-server's ``--cache-ram``, main memory in MiB for the states of earlier prompts:
        0, since a state is used again under another adapter or scale than it was computed with. Raises
        FileNotFoundError for a missing file, ExportError where xllamacpp isn't installed, for a file that isn't a whole
        GGUF file, and for an adapter of another base.
        """
        self._server: Any = None
        self._plain: int | None = None
        _check_numbers(context=context, slots=slots, threads=threads, cache_mib=cache_mib)
        if adapters is not None and (
            not isinstance(adapters, Mapping) or not all(isinstance(name, str) and name for name in adapters)
        ):
            raise ExportError(
                f"adapters must be a mapping from names to files, such as {{'style': path}}, not {adapters!r}"
            )
        self.adapters = {name: expanded(path) for name, path in (adapters or {}).items()}
        self.model = expanded(model)
        self._facts = _checked(self.model, self.adapters)
        self.context = context or min(self._facts.context or _LONGEST, _LONGEST)
        self._server = _started(self.model, list(self.adapters.values()), self.context, slots, threads, cache_mib)
        self.url: str = self._server.listening_address
        # A server that is freed before its loop runs waits for the loop's end for ever. This passes through the loop.
        self._request("GET", "/lora-adapters")

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and free the model; a second call does nothing."""
        self._server = None  # its destructor waits for the server's threads

    # ------------------------------------------------------------------------------------------------------- asking

    def token_ids(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text, in which special tokens are recognised. With `special` BOS and EOS are put around it,
        where the file says so.
        """
        asked = {"content": text, "add_special": special, "parse_special": True}
        return self._post("/tokenize", asked)["tokens"]

    def render(self, messages: str | Sequence[Message]) -> str:
        """A user's words, or a conversation, in the chat template of the file, up to where the answer begins; without
        the BOS token that llama.cpp puts in front by itself. Two things differ from transformers: a system message that
        the template refuses is put in front of the user's, and a conversation that ends with an answer is left open, so
        that the model goes on with it.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return self._post("/apply-template", {"messages": turns})["prompt"]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The token ids that llama.cpp computes with for a prompt."""
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], int):
            return [int(one) for one in prompt]  # pyright: ignore[reportArgumentType]
        return self.token_ids(self.render(prompt), special=True)  # pyright: ignore[reportArgumentType]

    def answer(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int = 64,
        *,
        adapter: str | Mapping[str, float] | None = None,
        scale: float = 1.0,
        temperature: float = 0.0,
        seed: int = 0,
        **sampling: Any,
    ) -> list[Answer]:
        """What the model answers to each prompt: greedily, or drawn at a `temperature` above 0.

        `sampling` goes to llama.cpp under its own names (top_k, top_p, min_p, repeat_penalty ...). Without them only
        the temperature shapes what is drawn: llama.cpp's own defaults (40, 0.95, 0.05) are switched off. Raises
        ValueError when there are no prompts, and ExportError for an adapter that wasn't loaded, a scale that isn't
        finite, or a request that llama.cpp refuses, such as a prompt that is longer than the context.
        """
        if isinstance(prompts, str):
            raise ValueError(f"pass a list of prompts, also for one: [{prompts[:40]!r}]")
        if not len(prompts):
            raise ValueError("there are no prompts to answer: the list is empty")
        asked = {
            "n_predict": max_new_tokens, "temperature": temperature, "seed": seed, "top_k": 0, "top_p": 1.0,
            "min_p": 0.0, "return_tokens": True, "cache_prompt": False, "lora": self.lora(adapter, scale), **sampling,
        }  # fmt: skip
        found = []
        for prompt in prompts:
            got = self._post("/completion", {"prompt": self.prompt_ids(prompt), **asked})
            ended = got["stop_type"] == "eos"
            stopped = ended or got["stop_type"] == "word"
            found.append(Answer(got["content"].strip(), len(got["tokens"]) - ended, stopped))
        return found

    def complete(self, prompts: Sequence[Prompt], max_new_tokens: int = 64, **settings: Any) -> list[str]:
        """The texts alone of what :meth:`answer` gives, with the same arguments."""
        return [one.text for one in self.answer(prompts, max_new_tokens, **settings)]

    def new_ids(
        self,
        prompt: Prompt,
        max_new_tokens: int = 64,
        *,
        adapter: str | Mapping[str, float] | None = None,
        scale: float = 1.0,
    ) -> list[int]:
        """The token ids of the greedy answer to a prompt, without EOS."""
        asked = {"n_predict": max_new_tokens, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
        lora = self.lora(adapter, scale)
        got = self._post("/completion", {"prompt": self.prompt_ids(prompt), "lora": lora, **asked})
        return got["tokens"][:-1] if got["stop_type"] == "eos" else got["tokens"]

    def log_probabilities(
        self, prompt: Prompt, *, adapter: str | Mapping[str, float] | None = None, scale: float = 1.0
    ) -> Float[Tensor, " vocabulary"]:
        """The logarithms of the next token's probabilities behind a prompt, for the whole vocabulary, float32."""
        if self._plain is None:
            self._plain = self.token_ids("a")[0]
        # The server says no probabilities of a token that writes nothing yet, such as EOS or half a character. So a
        # plain one is made to be taken; what is said are the model's own probabilities, before that.
        asked = {
            "prompt": self.prompt_ids(prompt), "n_predict": 1, "n_probs": 1_000_000, "temperature": 0.0,
            "logit_bias": [[self._plain, 1e6]], "cache_prompt": False, "lora": self.lora(adapter, scale),
        }  # fmt: skip
        got = self._post("/completion", asked)["completion_probabilities"][0]["top_logprobs"]
        found = torch.full((len(got),), -math.inf)
        found[torch.tensor([one["id"] for one in got])] = torch.tensor([one["logprob"] for one in got])
        return found

    def lora(self, adapter: str | Mapping[str, float] | None, scale: float = 1.0) -> list[dict[str, float]]:
        """What a request says of adapters, its field "lora": each by its number, in the order of loading, and scale.

        Raises ExportError for a name that wasn't loaded, or a scale that isn't finite.
        """
        names = list(self.adapters)
        if not (adapter is None or isinstance(adapter, str | Mapping)):
            raise ExportError(f"adapter must be a name, or a mapping from names to scales, not {adapter!r}")
        wanted = {} if adapter is None else {adapter: 1.0} if isinstance(adapter, str) else adapter
        if missing := [name for name in wanted if name not in names]:
            raise ExportError(f"no adapter {missing[0]!r} is loaded, only {', '.join(names) or 'none'}")
        found = {name: float(own) * float(scale) for name, own in wanted.items()}
        if not all(map(math.isfinite, found.values())):
            raise ExportError(f"an adapter's scale must be finite, and these are {found}")
        return [{"id": names.index(name), "scale": value} for name, value in found.items()]

    def client(self) -> OpenAI:
        """An `openai` client of this server. A request names its adapter: ``extra_body={"lora": model.lora(name)}``."""
        self._check_open()
        return local_client(f"{self.url}/v1", timeout=_SECONDS)

    def _check_open(self) -> None:
        if self._server is None:
            raise ExportError("this model is closed: open it again, LlamaCpp(path, adapters)")

    def _post(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        return self._request("POST", path, json.dumps(asked))

    def _request(self, method: str, path: str, body: str | None = None) -> Any:
        """A request's answer, as JSON. Raises ExportError with llama.cpp's words when it refuses."""
        self._check_open()
        connection = http.client.HTTPConnection(HOST, int(self.url.rpartition(":")[2]), timeout=_SECONDS)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            said = response.read().decode("utf-8", errors="replace")
        finally:
            connection.close()
        if response.status != 200:
            try:
                said = json.loads(said)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                pass
            raise ExportError(f"llama.cpp refuses this request: {str(said)[:600]}")
        return json.loads(said)


def _check_numbers(**numbers: Any) -> None:
    """Raise ExportError for what isn't a whole number, or is too small. Below two tokens llama.cpp ends the process."""
    least = {"context": 2, "slots": 1, "threads": 1, "cache_mib": 0}
    for name, value in numbers.items():
        if name == "context" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least[name]:
            raise ExportError(f"{name} must be a whole number of at least {least[name]}, not {value!r}")


def _checked(model: Path, adapters: Mapping[str, Path]) -> GGUFFacts:
    """What the model's file says, once it is sure that the adapters' files are for it."""
    facts = gguf_facts(model)
    if facts.kind != "model":
        raise ExportError(f"{model} holds an {facts.kind}: pass the base's file, and this one in adapters")
    for path in adapters.values():
        own = gguf_facts(path)
        if own.kind != "adapter":
            raise ExportError(f"{path} holds a {own.kind}, not an adapter: write one with to_gguf(folder, path)")
        if own.architecture != facts.architecture:
            raise ExportError(
                f"{path} is for the architecture {own.architecture}, and {model.name} is {facts.architecture}"
            )
        for name, shape in own.shapes.items():
            weight, _, matrix = name.rpartition(".")
            side = {"lora_a": 1, "lora_b": 0}.get(matrix)
            needed = facts.shapes.get(weight)
            if side is None or needed is None or len(shape) != 2 or shape[side] != needed[side]:
                raise ExportError(
                    f"{path} has {name} {shape}, which doesn't fit {model.name} ({needed or 'no such weight'}): it was "
                    "made for another base"
                )
    return facts


def _started(model: Path, adapters: Sequence[Path], context: int, slots: int, threads: int, cache_mib: int) -> Any:
    """llama.cpp's server, listening. Its parameters are those of llama-server, and it writes no log."""
    try:
        import xllamacpp as library
    except ImportError as error:
        raise ExportError(
            f"llama.cpp isn't here: {INSTALL} (compiled for Linux, macOS and Windows; where there is none for your "
            f"machine or Python, any llama.cpp runs the file: llama-server -m {model.name} --lora ADAPTER.gguf)"
        ) from error
    xllamacpp: Any = library  # compiled, without types
    p = xllamacpp.CommonParams()
    p.verbosity = -1
    p.model.path = str(model)
    loaded = []
    for path in adapters:
        one = xllamacpp.CommonAdapterLoraInfo()
        one.path, one.scale = str(path), 0.0
        loaded.append(one)
    p.lora_adapters = loaded
    p.hostnames, p.port, p.cors_origins = [HOST], 0, f"http://{HOST}"  # no website may ask it
    p.n_ctx, p.n_parallel = context * slots, slots
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
    p.n_gpu_layers = 0
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    p.warmup = p.fit_params = p.ui = False
    p.cache_ram_mib = cache_mib
    p.special = False
    try:
        return xllamacpp.Server(p)
    except RuntimeError as error:
        raise ExportError(
            f"llama.cpp can't load {model.name}{' and its adapters' if adapters else ''}: the file is damaged, of an "
            "architecture that it doesn't know, or there isn't enough memory. Write it again with to_gguf"
        ) from error
