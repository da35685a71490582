"""capstone.py --export: the finished adapter in the form that another program takes, and asked three prompts there.

Each export is written beside the run's folder, as OUT-gguf and so on, then loaded, and what it answers is held against
the answers in OUT/evaluation.json, which transformers and PEFT gave. What can't be asked on this machine is said to be
written and not tried.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.course.model_card import RESULTS, base_name
from utils.data.records import Message
from utils.evaluate.report import MOST_TOKENS, ROOM
from utils.export.adapter_facts import adapter_facts
from utils.export.errors import ExportError
from utils.export.hub import hub_dry_run
from utils.export.own_base import named_base
from utils.export.preflight_report import preflight
from utils.export.preflight_rules import vllm_rank
from utils.files import expanded
from utils.lora.adapter_config import CONFIG, read_settings
from utils.models.device import profile
from utils.models.errors import ModelUnavailable
from utils.models.loading import load_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = 3


class Asked(NamedTuple):
    """Held-out prompts of a run, each with the turns before it, what the adapter answered under transformers and PEFT,
    and how many tokens an answer could have.
    """

    prompts: list[list[Message]]
    answers: list[str]
    most: int


def asked(out: str | Path, tokenizer: PreTrainedTokenizerBase) -> Asked:
    """The first held-out prompts of a finished run. Raises what :func:`_replies` raises."""
    replies = _replies(expanded(out))
    longest = max(len(tokenizer(reply["wanted"], add_special_tokens=False)["input_ids"]) for reply in replies)
    first = replies[:PROMPTS]
    turns = [[*reply["earlier"], ("user", reply["prompt"])] for reply in first]
    return Asked(
        [[{"role": role, "content": text} for role, text in one] for one in turns],
        [reply["adapter"] for reply in first],
        min(longest + ROOM, MOST_TOKENS),  # as evaluate has it
    )


def _replies(out: Path) -> list[dict[str, Any]]:
    """The held-out answers of a finished run. Raises FileNotFoundError without its evaluation, ExportError when that is
    damaged or empty.
    """
    path = out / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"{out} holds no {RESULTS}, with whose answers an export is compared: end the run")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["replies"]
        whole = found and all({"wanted", "earlier", "prompt", "adapter"} <= reply.keys() for reply in found)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ExportError(f"{path} is damaged, or holds no answer: delete it and run capstone.py again to evaluate")
    return found


def export(out: str | Path, kinds: Sequence[str]) -> Iterator[str]:
    """Write the finished run in `out` in each of `kinds`, which :data:`utils.course.own_run.EXPORTS` names, and say of
    each what was written, what was tried, and how it went. An export that fails is said too, and the next one follows.

    Raises ExportError, when all have been said, if one of them failed: a script that called capstone.py is to see it.
    """
    out, failed = expanded(out), []
    wanted = list(dict.fromkeys(kinds))
    for kind in wanted:
        try:
            if kind != "vllm":  # which isn't asked; nothing is written that can't be compared
                _replies(out)
            yield f"{kind}: {_WRITERS[kind](out)}"
        except (ExportError, ModelUnavailable, ValueError, OSError) as error:
            failed.append(kind)
            yield f"{kind}: not exported. {error}"
    if failed:
        raise ExportError(f"{len(failed)} of {len(wanted)} exports weren't made: {', '.join(failed)}")


def _its_base(out: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The profile's base and its tokenizer. Raises ExportError when the adapter's settings name another one."""
    model, tokenizer = load_base()
    written, here = named_base(read_settings(out)), str(model.config._name_or_path)
    if written is not None and Path(written).name.lower() != Path(here).name.lower():
        raise ExportError(
            f"the adapter was trained on {written}, and COURSE_PROFILE={profile()} loads {here}: set COURSE_PROFILE, "
            "and COURSE_MODEL beside it, as they were for the run. If the two are one model under two names, write "
            f"this one into {out / CONFIG} (base_model_name_or_path)"
        )
    return model, tokenizer


def _beside(out: Path, what: str) -> Path:
    """The folder of an export."""
    return out.with_name(f"{out.name}-{what}")


def _name(out: Path) -> str:
    """What the adapter is called there: the folder's name in one word."""
    return "-".join(out.resolve().name.split())


def _to_gguf(out: Path, folder: Path) -> tuple[Path, Path, Any]:
    """Base and adapter as GGUF files in `folder`, and the tokenizer."""
    from utils.export.gguf import to_gguf

    preflight(out, "llama.cpp").checked()
    model, tokenizer = _its_base(out)
    base = to_gguf(model, folder / "base-f16.gguf", "f16", tokenizer=tokenizer)
    return base, to_gguf(out, folder / "adapter-f16.gguf", "f16", base=model), tokenizer


def _tried(base: Path, adapter: Path, wanted: Asked) -> str:
    """What llama.cpp answers with these files, against the run's own answers."""
    from utils.export.llama_cpp import LlamaCpp

    try:
        with LlamaCpp(base, {"adapter": adapter}) as model:
            said = model.complete(wanted.prompts, wanted.most, adapter="adapter")
    except ExportError as error:
        return f"Not tried: {str(error).rstrip('.')}"
    return f"llama.cpp loads them and {_alike(said, wanted)}"


def _alike(said: Sequence[str], wanted: Asked) -> str:
    """How many answers are those of the run, and the first that isn't."""
    differ = [(text, one) for text, one in zip(said, wanted.answers, strict=True) if text.strip() != one]
    verdict = f"answers {len(said) - len(differ)} of {len(said)} held-out prompts as transformers does"
    return verdict + "".join(f"; in place of {one[:80]!r} it says {text[:80]!r}" for text, one in differ[:1])


def _gguf(out: Path) -> str:
    base, adapter, tokenizer = _to_gguf(out, _beside(out, "gguf"))
    command = ["llama-server", "-m", str(base), "--lora", str(adapter)]
    return f"{base} and {adapter}. {_tried(base, adapter, asked(out, tokenizer))}.\n  {shlex.join(command)}"


def _ollama(out: Path) -> str:
    from utils.export.modelfile_checks import check_modelfile
    from utils.export.ollama import write_modelfile

    folder = _beside(out, "ollama")
    base, adapter, tokenizer = _to_gguf(out, folder)
    path = write_modelfile(folder, base, adapter, tokenizer=tokenizer)
    found = check_modelfile(path.read_text(encoding="utf-8"), tokenizer=tokenizer, folder=folder)
    said = [f"{path}, beside its two GGUF files. {_tried(base, adapter, asked(out, tokenizer))}."]
    said += [f"The Modelfile: {one}" for one in found]
    said += ["Ollama itself, which computes with llama.cpp, wasn't run."]
    return "\n  ".join([*said, shlex.join(["ollama", "create", _name(out).lower(), "-f", str(path)])])


def _vllm(out: Path) -> str:
    facts = adapter_facts(out)
    rank, named = vllm_rank(facts.rank), named_base(facts.settings)
    found = preflight(out, "vllm", max_rank=rank, base=named)
    if found.refused:
        raise ExportError(f"It can't be served.\n{found}")
    command = ["vllm", "serve", named or "BASE", "--enable-lora", "--max-lora-rank", str(rank)]
    command += ["--lora-modules", f"{_name(out)}={out}"]
    unnamed = "" if named else " Put the base that it was trained on in the place of BASE."
    return f"{found}. It takes the folder as it is; it wasn't run here.{unnamed}\n  {shlex.join(command)}"


def _hub(out: Path) -> str:
    from peft import PeftModel

    from utils.evaluate.metrics import complete

    base = base_name(profile())
    named = Path(base).name if profile() == "tiny" else base
    model, tokenizer = _its_base(out)
    ready = hub_dry_run(out, f"YOU/{_name(out)}", _beside(out, "hub"), base=named)
    try:
        loaded = PeftModel.from_pretrained(model, str(ready.folder)).eval()
    except RuntimeError as error:  # of another shape
        first = next(iter(str(error).splitlines()), "")
        raise ExportError(f"{ready.folder} is written, and PEFT can't load it onto {base}: {first}") from error
    wanted = asked(out, tokenizer)
    said = _alike(complete(loaded, tokenizer, wanted.prompts, wanted.most), wanted)
    return f"{ready.folder} holds what would be sent, and nothing was. PEFT loads it and {said}.\n{ready}"


_WRITERS: dict[str, Callable[[Path], str]] = {"gguf": _gguf, "ollama": _ollama, "vllm": _vllm, "hub-dry-run": _hub}
