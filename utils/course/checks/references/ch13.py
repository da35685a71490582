"""The answers to chapter 13's exercises, cell by cell as the lesson solves them.

Generated from lessons/13_out_of_the_notebook.md by `make notebooks`: edit the lesson, not this file.
"""

# fmt: off

# -------- update_size_13
def update_size_13(d_in, d_out, r):
    return r * (d_in + d_out)
