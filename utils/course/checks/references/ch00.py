"""The answers to chapter 0's exercises, cell by cell as the lesson solves them.

Generated from lessons/00_start_here.md by `make notebooks`: edit the lesson, not this file.
"""

# fmt: off

# -------- linear_parameters
def linear_parameters(layer):
    return sum(p.numel() for p in layer.parameters())


# -------- lora_parameters
def lora_parameters(d_in, d_out, r):
    return r * d_in + d_out * r
