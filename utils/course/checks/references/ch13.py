"""The answers to chapter 13's exercises, cell by cell as the lesson solves them.

Generated from lessons/13_out_of_the_notebook.md by `make notebooks`: edit the lesson, not this file.
"""

# fmt: off

# -------- for read_value
import struct

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def number(file, letter):
    """The next number of the file; `letter` is its type as Python's struct calls it: I and Q are 4 and 8 bytes."""
    return struct.unpack("<" + letter, file.read(struct.calcsize("<" + letter)))[0]


def text(file):
    """A string: its length in bytes, then the bytes."""
    return file.read(number(file, "Q")).decode()


# -------- read_value
def read_value(file, kind):
    if kind == 8:
        return text(file)
    if kind == 9:
        items, count = number(file, "I"), number(file, "Q")
        return [read_value(file, items) for _ in range(count)]
    return number(file, SCALARS[kind])


# -------- rotate
def rotate(rows, heads):
    half = len(rows) // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


# -------- for entries
PARTS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


# -------- entries
def entries(module, lora_A, lora_B, heads):
    *_, layer, _, kind = module.split(".")
    name = f"blk.{layer}.{PARTS[kind]}.weight"
    if kind in heads:
        lora_B = rotate(lora_B, heads[kind])
    return {f"{name}.lora_a": lora_A, f"{name}.lora_b": lora_B}


# -------- faults
faults = {"A": "template", "B": "adapter's rotation", "C": "base's rotation", "D": "alpha"}
