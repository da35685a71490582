"""A stream's source is told when the client is gone: before the first piece, while one is sent, and between two."""

from __future__ import annotations

import asyncio
import gc

import pytest
from fastapi.responses import StreamingResponse

from utils.inference.closed_stream import ClosedStream


async def told(kind, gone_at):
    """Whether the source was told, of a client that hangs up at that moment. Python's collector is off: as if late."""
    heard, gone, kept = [], asyncio.Event(), []

    async def pieces():
        try:
            while True:
                yield b"piece"
                if gone_at == "between two pieces":
                    gone.set()
                await asyncio.sleep(0.001)
        except (GeneratorExit, asyncio.CancelledError):
            heard.append(True)
            raise

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        slow = {"http.response.start": "before the first", "http.response.body": "while one is sent"}
        if slow[message["type"]] == gone_at:
            gone.set()
            await asyncio.sleep(60)

    kept.append(pieces())  # something, such as a traceback, still holds it
    await asyncio.wait_for(kind(kept[0])({"type": "http"}, receive, send), 10)
    return bool(heard)


@pytest.fixture(autouse=True)
def collector_is_off():
    gc.disable()
    yield
    gc.enable()


MOMENTS = ("before the first", "while one is sent", "between two pieces")


@pytest.mark.parametrize("gone_at", MOMENTS)
def test_the_source_hears_that_the_client_is_gone(gone_at):
    assert asyncio.run(told(ClosedStream, gone_at))


def test_starlettes_own_tells_it_between_two_pieces_only():
    """When this fails, Starlette closes its source, and ClosedStream may go."""
    assert [asyncio.run(told(StreamingResponse, moment)) for moment in MOMENTS] == [False, False, True]


def test_a_whole_stream_is_sent_as_it_is():
    sent = []

    async def pieces():
        for piece in (b"a", b"b", b"c"):
            yield piece

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message.get("body"))

    asyncio.run(ClosedStream(pieces())({"type": "http"}, receive, send))
    assert sent == [None, b"a", b"b", b"c", b""]
