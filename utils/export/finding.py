"""One thing that a target makes of what is about to be sent to it: of an adapter, or of a Modelfile."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["refuses", "wrong", "look"]


class Finding(NamedTuple):
    """What was found, and what to do about it.

    name: a short one, such as "dora" or "no stop". what: what was found, and what it does. cure: what to do, or to
    write. verdict: "refuses" (an error there), "wrong" (it loads in silence, and computes something else) or "look"
    (whether it matters depends on what the files don't say). source: where the rule was read, "" where the cure's own
    documentation says it.
    """

    name: str
    what: str
    cure: str
    verdict: Verdict = "wrong"
    source: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.what}. Instead: {self.cure}"
