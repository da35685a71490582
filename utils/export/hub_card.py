"""What an adapter's card has to say on the Hub besides what the run wrote: the base, the licences, and of whose data.

Attributes:
    CARD: The file that the Hub shows and reads, Markdown with a YAML header.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from utils.export.errors import ExportError
from utils.lora.adapter_config import short

CARD = "README.md"
_TEXTS = ("tags", "datasets", "language", "license", "license_name", "license_link", "base_model", "metrics",
          "library_name", "pipeline_tag", "model_name")  # fmt: skip
_UNFILLED = "[More Information Needed]"  # in the card that PEFT writes by itself


class Licences(NamedTuple):
    """Under what adapter, base and data may be used, as the Hub abbreviates licences (mit, apache-2.0, llama3.2 ...).

    adapter: yours. base: that of the base model, which binds what is made of it. data: that of the records. datasets:
    their ids on the Hub, if they are there.
    """

    adapter: str | None = None
    base: str | None = None
    data: str | None = None
    datasets: tuple[str, ...] = ()


def hub_card(card: str, repo_id: str, base: str, licences: Licences) -> tuple[str, list[str]]:
    """The card with base and licences in its header and a section on them, and what is missing in it.

    `card` is the one beside the adapter (:mod:`utils.course.model_card` writes it), or "" for none; then one of a few
    lines is made. What it says already stays. Raises ExportError when its header isn't what the Hub reads: no YAML, no
    dictionary, a value that isn't text.
    """
    from huggingface_hub import ModelCard, ModelCardData

    missing = []
    if not card.strip() or _UNFILLED in card:
        missing.append("there is no card that says what it was trained on, and how well it does")
    if not card.strip():
        card = f"# {repo_id.rpartition('/')[2]}\n\nA LoRA adapter for `{base}`, in PEFT's format.\n"
    card = card.removeprefix("\ufeff")
    if not card.lstrip().startswith("---"):
        card = f"---\n{ModelCardData(library_name='peft', tags=['lora']).to_yaml()}\n---\n{card}"
    _check_header(card)
    read: Any = ModelCard(card.lstrip())
    if base.count("/") == 1:
        read.data.base_model, read.data["base_model_relation"] = base, "adapter"
    else:
        missing.append(f"the base, {base}, is no model of the Hub: whoever uses the adapter needs its folder")
    if licences.adapter:
        read.data.license = licences.adapter
    if licences.datasets:
        read.data.datasets = list(licences.datasets)
    said = {"adapter": licences.adapter or read.data.get("license"), "base": licences.base, "data": licences.data}
    missing += [f"the licence of the {what} isn't said" for what, one in said.items() if not one]
    if any((licences.adapter, licences.base, licences.data)) and "## Licences" not in read.text:
        rows = [f"- {what}: {one or 'not said'}" for what, one in said.items()]
        read.text = f"{read.text.rstrip()}\n\n## Licences\n\n" + "\n".join(rows) + "\n"
    return str(read), missing


def _check_header(card: str) -> None:
    """Raise ExportError unless the card's header is YAML that the Hub takes, naming what isn't."""
    import yaml
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    def refused(what: str) -> ExportError:
        return ExportError(f"the header of {CARD} {what}")

    block = REGEX_YAML_BLOCK.search(card)
    if block is None:
        raise refused("begins with --- and has no end: close it by a line --- of its own, or take it away")
    try:
        fields = yaml.safe_load(block[2]) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" (line {mark.line + 2}: {problem})" if mark else f" ({short(error)})"
        raise refused(f"isn't YAML{where}: mend that line, or take the header away and a new one is made") from error
    if not isinstance(fields, dict):
        raise refused(f"is a {type(fields).__name__} in YAML, and NAME: VALUE lines are wanted")
    for name, value in fields.items():
        if not isinstance(name, str):
            raise refused(f"has the name {short(name)}, which YAML reads as a {type(name).__name__}: quote it")
        if name not in _TEXTS or value in (None, ""):  # nothing is said; PEFT's own card has an empty base_model
            continue
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str) or not one.strip():
                raise refused(
                    f"says {name}: {short(one)}, which YAML reads as a {type(one).__name__}, and the Hub takes text: "
                    'quote it ("no", "2024"), or take it out'
                )
    try:
        ModelCard(card)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise refused(f"can't be read ({short(error)}): mend it, or take it away and a new one is made") from error
