"""What an adapter's card has to say on the Hub besides what the run wrote: the base, the licences, and of whose data.

Attributes:
    CARD: The file that the Hub shows and reads, Markdown with a YAML header.
"""

from __future__ import annotations

from typing import Any, NamedTuple

CARD = "README.md"
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
    lines is made. What it says already stays. Raises ValueError when its header is no YAML.
    """
    from huggingface_hub import ModelCard, ModelCardData

    missing = []
    if not card.strip() or _UNFILLED in card:
        missing.append("there is no card that says what it was trained on, and how well it does")
    if not card.strip():
        card = f"# {repo_id.rpartition('/')[2]}\n\nA LoRA adapter for `{base}`, in PEFT's format.\n"
    if not card.startswith("---"):
        card = f"---\n{ModelCardData(library_name='peft', tags=['lora']).to_yaml()}\n---\n{card}"
    read: Any = ModelCard(card)
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
