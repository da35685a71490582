"""The answers to chapter 6's exercises, cell by cell as the lesson solves them.

Generated from lessons/06_loading_models.md by `make notebooks`: edit the lesson, not this file.
"""

import math

# fmt: off

# -------- four_bit_bytes
def four_bit_bytes(shapes, bits):
    total = 0
    for name, shape in shapes.items():
        kept = any(part in name for part in ("embed", "norm", "lm_head"))
        total += math.prod(shape) * (2 if kept else bits / 8)
    return total


# -------- training_device_map
def training_device_map(environ):
    return {"": int(environ.get("LOCAL_RANK", 0))}
