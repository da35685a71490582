"""Generation: decoding by hand, the KV cache, streaming and serving."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "kv_cache": "cache_bytes positions_computed",
        "playground": "Playground",
        "serving": "for_request",
        "shared_prefix": "answer_from apart_by_position read_by_base tokens_read",
        "streaming": "StreamFailed StreamTimeout TextStream",
    },
)
