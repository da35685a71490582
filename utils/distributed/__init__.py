"""Several processes that train together: started from a notebook, what they exchange by hand, and its bytes."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "average": "counted_on_all ddp_loss",
        "bytes": "StepBytes measured sent step_bytes",
        "ring": "ring_all_reduce sent_chunk",
        "shard": "ShardedLinear",
        "start": "RankFailed TookTooLong run stop",
        "traps": "TRAPS spring",
    },
)
