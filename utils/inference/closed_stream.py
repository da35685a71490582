"""A streamed answer whose source hears that the client has hung up, whenever that was.

Starlette cancels a stream when its client is gone. That reaches the generator of the pieces while it waits for the
next one. While a piece is being sent it reaches the sending, and the generator stays open until Python's collector
finds it; and a generator that hasn't begun hears nothing at all. In transformers' server the model then writes on to
its last token, for nobody, and the next request waits. Both servers of :func:`utils.inference.serving.serve` use this
class: transformers' is given it when it starts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

from fastapi.responses import StreamingResponse


class ClosedStream(StreamingResponse):
    """A StreamingResponse that begins its generator before a client can have hung up, and closes it in any case."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        pieces = cast(AsyncGenerator[Any], self.body_iterator)
        first = await anext(pieces)

        async def both() -> AsyncIterator[Any]:
            yield first
            async for piece in pieces:
                yield piece

        self.body_iterator = both()
        try:
            await super().__call__(scope, receive, send)
        finally:
            await pieces.aclose()
