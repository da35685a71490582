"""Generation: decoding by hand, the KV cache, streaming and serving."""

from utils.inference.kv_cache import cache_bytes, cache_name, positions_computed
from utils.inference.playground import Playground
from utils.inference.streaming import StreamFailed, StreamTimeout, TextStream

__all__ = [
    "Playground",
    "StreamFailed",
    "StreamTimeout",
    "TextStream",
    "cache_bytes",
    "cache_name",
    "positions_computed",
]
