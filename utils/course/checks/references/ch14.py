"""The answers to chapter 14's exercises, cell by cell as the lesson solves them.

Generated from lessons/14_my_run_went_wrong.md by `make notebooks`: edit the lesson, not this file.
"""

# fmt: off

# -------- diagnose
def diagnose(signs):
    found = []
    if signs.trainable == 0:
        found.append("nothing trainable")
    elif signs.trend == "jumped":
        found.append("rate too high")
    elif signs.trend == "flat":
        found.append("rate too low")
    if signs.padding:
        found.append("padding trained on")
    if not signs.eos:
        found.append("no EOS")
    return found


# -------- how_often
def how_often(before, after, A, B):
    delta = B @ A
    return float(((after - before) * delta).sum() / delta.square().sum())
