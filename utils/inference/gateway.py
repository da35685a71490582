"""What a client sees of :func:`utils.inference.serving.serve`: a thin layer before transformers' server.

`transformers serve` answers well-formed requests. Of the others it answers 500 to some, ignores what it doesn't know,
leaves stop strings in the answer, and loads any folder that a request names. Here a request is checked
(:func:`utils.inference.chat_request.read`) and handed on, and the answer is cut at the stop strings
(:class:`StopCutter`) as it comes. Each answer is asked for as a stream, so that a stop string, a time-out and a client
that hangs up all end the generation in one way: by hanging up on transformers' server.

Attributes:
    MAX_BODY: The longest request, in bytes.
"""

from __future__ import annotations

import asyncio
import hmac
import importlib
import json
import socket
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from openai import APIConnectionError, APIError, AsyncOpenAI, DefaultAsyncHttpxClient

from utils.inference.chat_request import Refused, Staged, Wanted, find, read
from utils.inference.closed_stream import ClosedStream

# httpx, or what openai has put in its place. openai before 3.14 lets its error through when a connection breaks in the
# middle of a stream, as it does when transformers' server dies.
_HTTP = next(kind for kind in DefaultAsyncHttpxClient.__mro__ if kind.__name__ == "AsyncClient").__module__
_BROKEN: type[Exception] = importlib.import_module(_HTTP.partition(".")[0]).TransportError

MAX_BODY = 1_000_000
_HUNG_UP = "the client hung up"
_GONE = (
    "The server of the models has ended. Leave the block of serve() and enter it again; server.log says what happened."
)

# OpenAI's client tries again after a 5xx, unless it is told that it would take as long and end in the same way.
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, **dict.fromkeys((500, 503, 504), {"x-should-retry": "false"})}


# -------------------------------------------------------------------------------------------------- the answer


class StopCutter:
    """Ends a text that comes in pieces before the stop string that is complete first.

    Of stops that are complete at the same letter, the longest counts. What may be the beginning of a stop is held back
    until the next pieces tell.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.found = tuple(stops), "", False

    def feed(self, piece: str) -> str:
        """What can be shown now that `piece` has come."""
        if self.found:
            return ""
        text = self._held + piece
        places = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)[1]]
        longest = max(map(len, self._stops), default=1) - 1
        held = next((n for n in range(min(longest, len(text)), 0, -1) if self._may_begin(text[-n:])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _may_begin(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)

    def rest(self) -> str:
        """What was held back, once the text has ended."""
        held, self._held = self._held, ""
        return held


async def _answer(upstream: AsyncOpenAI, wanted: Wanted) -> AsyncIterator[tuple[str, str | None, int]]:
    """Pieces of the answer, each with the reason to finish (of the last) and the number of tokens until then.

    When a stop string ends it, the tokens are counted as they came: one for each piece that transformers' server sent,
    or as many as a letter has that needs several.
    """
    cutter, tokens = StopCutter(wanted.stops), 0
    stream = await upstream.chat.completions.create(**wanted.forward, stream=True)
    try:
        async for chunk in stream:
            choice = chunk.choices[0]
            piece = choice.delta.content or ""
            if choice.delta.content is not None:
                tokens += 1 if piece.isascii() else max(1, len(wanted.model.tokenizer.tokenize(piece)))
            text = cutter.feed(piece)
            if cutter.found:
                yield text, "stop", tokens
                return
            if choice.finish_reason:
                yield (
                    text + cutter.rest(),
                    choice.finish_reason,
                    chunk.usage.completion_tokens if chunk.usage else tokens,
                )
                return
            if text:
                yield text, None, tokens
    finally:
        await stream.close()
        # The stream and its generator hold each other, so what stands still inside is left to Python's collector, which
        # may find it in a thread that has no loop and writes a traceback into the page.
        await cast(Any, stream)._iterator.aclose()
    raise Refused(503, _GONE, code="server_unavailable")


class _Answer:
    """:func:`_answer` until the deadline, its faults as Refused."""

    def __init__(self, upstream: AsyncOpenAI, wanted: Wanted, timeout: float) -> None:
        self._pieces, self._timeout, self._model = _answer(upstream, wanted), timeout, wanted.model.name
        self._deadline = asyncio.get_running_loop().time() + timeout

    async def next(self) -> tuple[str, str | None, int]:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await anext(self._pieces)
        except TimeoutError:
            message = f"The answer wasn't ready after {self._timeout:g} seconds. Ask for fewer tokens (max_tokens), or "
            raise Refused(504, message + "serve with a larger request_timeout.", code="timeout") from None
        except (APIConnectionError, _BROKEN):
            raise Refused(503, _GONE, code="server_unavailable") from None
        except (APIError, ValueError) as error:
            message = f"The server of the models failed at {self._model!r}, see server.log: {error}"
            raise Refused(500, message[:500], "model") from None

    async def close(self) -> None:
        await cast(Any, self._pieces).aclose()


async def _whole(answer: _Answer, request: Request) -> tuple[str, str, int] | None:
    """The text, the reason to finish and the number of tokens; None when the client has hung up."""
    text, reason, tokens = "", None, 0
    while reason is None:
        piece, reason, tokens = await answer.next()
        text += piece
        if await request.is_disconnected():
            return None
    return text, reason, tokens


async def _events(answer: _Answer, first: tuple[str, str | None, int], wanted: Wanted, head: dict[str, Any], done: Any):
    """The stream as server-sent events; an error in the middle is one too."""

    def event(delta: dict[str, str] | None, reason: str | None = None, usage: dict[str, int] | None = None) -> str:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        chunk = head | {"object": "chat.completion.chunk", "choices": choices}
        return f"data: {json.dumps(chunk | ({'usage': usage} if wanted.include_usage else {}))}\n\n"

    outcome = 499, _HUNG_UP
    try:
        yield event({"role": "assistant", "content": ""})
        piece, reason, tokens = first
        while True:
            if piece:
                yield event({"content": piece})
            if reason:
                break
            piece, reason, tokens = await answer.next()
        yield event({}, reason)
        if wanted.include_usage:
            yield event(None, usage=_usage(wanted, tokens))
        outcome = 200, f"{tokens} tokens, {reason}"
        yield "data: [DONE]\n\n"
    except Refused as error:
        outcome = error.status, str(error)
        yield f"data: {json.dumps(error.body)}\n\n"
    except Exception:
        outcome = 500, "failed"
        raise
    finally:
        done(*outcome)
        await answer.close()


def _usage(wanted: Wanted, tokens: int) -> dict[str, int]:
    total = wanted.prompt_tokens + tokens
    return {"prompt_tokens": wanted.prompt_tokens, "completion_tokens": tokens, "total_tokens": total}


# --------------------------------------------------------------------------------------------------- the server


def build(
    models: Mapping[str, Staged], url: str, *, api_key: str | None, request_timeout: float,
    log: Callable[[str], Any], alive: Callable[[], bool],
) -> FastAPI:  # fmt: skip
    """The application before transformers' server at `url`.

    `log` takes a line for each request, and `alive` says whether that server still runs.
    """
    settings: dict[str, Any] = {"base_url": url, "api_key": "none", "max_retries": 0, "timeout": None}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncOpenAI(**settings, http_client=DefaultAsyncHttpxClient(trust_env=False)) as app.state.upstream:
            yield

    def authorized(request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        right = scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), (api_key or "").encode())
        if api_key is not None and not right:
            message = "Incorrect API key provided." if scheme else "You didn't provide an API key."
            raise Refused(401, message, code="invalid_api_key")

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    guarded = [Depends(authorized)]

    def note(line: str) -> None:
        log(" ".join(line.splitlines()))  # a client's words can't begin a line of their own

    def error(request: Request, why: Refused, headers: Mapping[str, str] | None = None) -> JSONResponse:
        note(f"{why.status} {request.method} {request.url.path}: {why}")
        return JSONResponse(why.body, why.status, headers or _HEADERS.get(why.status))

    @app.exception_handler(Refused)
    async def refused(request: Request, why: Refused) -> JSONResponse:
        return error(request, why)

    @app.exception_handler(Exception)
    async def failed(request: Request, why: Exception) -> JSONResponse:
        """A fault of this file: uvicorn is muted, so the traceback goes into the log here."""
        log("".join(traceback.format_exception(why)).rstrip())
        return error(request, Refused(500, "The server failed, see server.log."))

    @app.exception_handler(404)
    async def no_such_address(request: Request, why: Any) -> JSONResponse:
        message = f"Invalid URL ({request.method} {request.url.path}): there are /v1/chat/completions and /v1/models."
        return error(request, Refused(404, message, code="unknown_url"))

    @app.exception_handler(405)
    async def no_such_method(request: Request, why: Any) -> JSONResponse:
        message = f"Not allowed to {request.method} {request.url.path}: it takes {why.headers['Allow']}."
        return error(request, Refused(405, message, code="method_not_allowed"), why.headers)

    reading = ["GET", "HEAD"]

    @app.api_route("/health", methods=reading)
    async def health() -> dict[str, str]:
        if not alive():
            raise Refused(503, _GONE, code="server_unavailable")
        return {"status": "ok"}

    @app.api_route("/v1/models", dependencies=guarded, methods=reading)
    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model.listed() for model in models.values()]}

    @app.api_route("/v1/models/{name:path}", dependencies=guarded, methods=reading)
    def one_model(name: str) -> dict[str, Any]:
        return find(name, models).listed()

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat_completions(request: Request) -> Response:
        began = time.monotonic()
        wanted = await asyncio.to_thread(read, await _parsed(request, request_timeout), models)  # may take seconds
        answer = _Answer(app.state.upstream, wanted, request_timeout)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": wanted.model.name}

        def done(status: int, what: str) -> None:
            note(f"{status} {wanted.model.name}: {what}, {time.monotonic() - began:.2f} s")

        if wanted.stream:  # the first piece is waited for, so that a fault until then has its HTTP status
            first = await answer.next()
            return ClosedStream(_events(answer, first, wanted, head, done), media_type="text/event-stream")
        try:
            whole = await _whole(answer, request)
        finally:
            await answer.close()
        if whole is None:
            done(499, _HUNG_UP)
            return Response(status_code=499)
        text, reason, tokens = whole
        done(200, f"{tokens} tokens, {reason}")
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": _usage(wanted, tokens)})

    return app


async def _parsed(request: Request, timeout: float) -> Any:
    """The body as JSON. It is read to its end even when it is too long, so that the client gets to read the answer."""
    body, size, more = bytearray(), 0, True
    try:
        async with asyncio.timeout(timeout):
            while more:
                event = await request.receive()
                if event["type"] == "http.disconnect":
                    raise Refused(499, _HUNG_UP)
                part, more = event.get("body", b""), event.get("more_body", False)
                size += len(part)
                body += part if size <= MAX_BODY else b""
    except TimeoutError:
        raise Refused(408, f"The request wasn't here after {timeout:g} seconds.", code="timeout") from None
    if size > MAX_BODY:
        raise Refused(413, f"The request has {size:,} bytes; {MAX_BODY:,} are the most.", code="request_too_large")
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"We could not parse the JSON body of your request: {error}") from None


class Gateway:
    """:func:`build`'s application, served from a thread of this process on the socket that it is given."""

    def __init__(self, app: FastAPI, bound: socket.socket) -> None:
        config = uvicorn.Config(app, log_config=None, log_level="critical", access_log=False, timeout_keep_alive=60,
                                timeout_graceful_shutdown=2)  # fmt: skip
        self.port: int = bound.getsockname()[1]
        self._server, self._socket = uvicorn.Server(config), bound
        self._thread = threading.Thread(target=self._server.run, args=([bound],), name="gateway", daemon=True)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def start(self, timeout: float = 10.0) -> None:
        self._thread.start()
        deadline = time.monotonic() + timeout
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not self._server.started:
            raise RuntimeError("the gateway didn't start")

    def stop(self) -> None:
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(10)
        self._socket.close()
