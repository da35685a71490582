"""The answers to chapter 3's exercises, cell by cell as the lesson solves them.

Generated from lessons/03_the_lora_update.md by `make notebooks`: edit the lesson, not this file.
"""

# fmt: off

# -------- lora_forward
def lora_forward(x, W0, A, B, s):
    return x @ W0.T + s * (x @ A.T) @ B.T


# -------- lora_gradients
def lora_gradients(x, g, A, B, s):
    dA = s * (g @ B).T @ x
    dB = s * g.T @ (x @ A.T)
    return dA, dB


# -------- equivalent_b_rate
def equivalent_b_rate(lr, s_old, s_new, optimizer):
    c = s_new / s_old
    return lr * c if optimizer == "adam" else lr * c**2
