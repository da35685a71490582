"""What a server would refuse of an adapter, or compute wrong without a word, told before anything is sent to it.

    print(preflight("my-adapter", "vllm", base="base-folder"))

reads `adapter_config.json` and the header of the weights (:mod:`utils.export.adapter_facts`) and holds them against the
rules of :mod:`utils.export.preflight_rules`, each of which names where it was read. No server is needed, and none is
asked: a rule is of the version that its source names. The base is the one that the server will have: it is held against
the one that the adapter was trained on (:mod:`utils.export.own_base`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.export.adapter_facts import adapter_facts
from utils.export.errors import ExportError
from utils.export.finding import Finding
from utils.export.preflight_rules import FINDERS, TARGETS, another_base, another_method, unnamed_base
from utils.train.consolidate import check_whole

_SAID = {"refuses": "refuses", "wrong": "would get wrong"}
_VERDICTS = {"refuses": "refused", "wrong": "silently wrong", "look": "to look at"}


@dataclass(frozen=True)
class Preflight:
    """What one target makes of one adapter; compared: whether a base was given, and held against its own. `print` shows
    it; `checked` raises what it refuses.
    """

    folder: Path
    target: str
    findings: tuple[Finding, ...]
    compared: bool = False

    @property
    def refused(self) -> tuple[Finding, ...]:
        """What the target refuses to load."""
        return tuple(finding for finding in self.findings if finding.verdict == "refuses")

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """What the target loads and computes wrong, with no word of it."""
        return tuple(finding for finding in self.findings if finding.verdict == "wrong")

    def checked(self, *, wrong: bool = False) -> Preflight:
        """Itself. Raises ExportError, with the first finding and its cure, when the target refuses the adapter; with
        `wrong` also when it would compute something else.
        """
        if found := self.refused + self.wrong * wrong:
            first, *more = found
            who = f"{TARGETS[self.target]} {_SAID[first.verdict]} {self.folder.name}"
            others = f" ({len(more)} more: {', '.join(finding.name for finding in more)})" if more else ""
            raise ExportError(f"{who}: {first.what}. Instead: {first.cure}{others}")
        return self

    def __str__(self) -> str:
        found = ", ".join(f"{n} {word}" for word, n in self._counts().items())
        base = "" if self.compared else "; its base wasn't compared (base=)"
        who = f"{self.folder.name} for {TARGETS[self.target]}"
        lines = [f"{who}: {found or 'nothing found that it refuses or gets wrong'}{base}"]
        for finding in self.findings:
            lines += [
                f"  {_VERDICTS[finding.verdict]}: {finding.what}",
                f"    instead: {finding.cure}",
                f"    [{finding.name}; {finding.source}]",
            ]
        return "\n".join(lines)

    def _counts(self) -> dict[str, int]:
        """How many findings there are of each verdict, in the order of :data:`_VERDICTS`."""
        found = Counter(finding.verdict for finding in self.findings)
        return {word: found[verdict] for verdict, word in _VERDICTS.items() if found[verdict]}


def preflight(folder: str | Path, target: str, *, max_rank: int | None = None, base: Any = None) -> Preflight:
    """Hold the PEFT adapter in `folder` against what `target`, one of :data:`TARGETS`, takes.

    `max_rank` is the largest rank that the server was started for, where it has such a limit: vLLM's
    ``--max-lora-rank``, 16 by default, or SGLang's, which is by default the largest rank it starts with. `base` is the
    base there: a model, its folder, its id on the Hub or its configuration; without it the base isn't compared.

    Raises FileNotFoundError and ValueError for an adapter that is missing or damaged, ExportError for another target,
    and ValueError for one rank's share of an adapter (:func:`utils.train.consolidate.check_whole`), which nobody can
    use.
    """
    if target not in TARGETS:
        raise ExportError(f"there are no rules for {target!r}, only for {', '.join(TARGETS)}")
    facts = adapter_facts(folder)
    if facts.method == "LORA":
        check_whole(facts.folder)
        facts.check_ranks()
    finders = FINDERS if facts.method == "LORA" else (another_method, unnamed_base)
    found = [finding for finder in finders for finding in finder(facts, target, max_rank)]
    if base is not None:
        found += another_base(facts.folder, base)
    found.sort(key=lambda one: list(_VERDICTS).index(one.verdict))
    return Preflight(facts.folder, target, tuple(found), base is not None)
