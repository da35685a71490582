"""Compare who renders what: transformers, llama.cpp and Ollama; and what a wrong rendering costs: templates.json.

    python -m tools.measure_templates              everything (one CPU core: a minute or two)
    python -m tools.measure_templates --trial      one family and few prompts; written only where --out says
    python -m tools.measure_templates --guess DIR  what Ollama's importer makes of a GGUF file without a TEMPLATE, added
                                                   to the record; DIR is the folder template/ of Ollama's source
    python -m tools.measure_templates --golden     what Go renders, for tests without Go: tests/export/renderings.json

Fifty conversations (tools/template_talks.py) are rendered with the chat templates of six families by transformers, by
llama.cpp's server (utils/export/llama_cpp.py) and by Ollama's template engine in Go (tests/export/render.go) with the
TEMPLATE of utils/export/go_template.py, and the token ids are compared. Then the tiny model with its pirate adapter is
asked in renderings as they go wrong on the way into a server. Needs Go, xllamacpp and TRL.

Attributes:
    SAMPLING: How Ollama samples where a Modelfile doesn't say (api/types.go there; repeat_penalty was 1.1 before
        v0.32.10 of August 2026).
    WRONG: What goes wrong, the words for it, and what it makes of the right rendering of a user's words.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.ensemble import provenance, write
from tools.go_render import go_render, go_version
from tools.template_talks import TALKS, Family, families, family_tokenizer
from utils.evaluate.metrics import complete
from utils.export.errors import ExportError
from utils.export.gguf import to_gguf
from utils.export.go_template import go_template
from utils.export.llama_cpp import LlamaCpp
from utils.export.modelfile_checks import check_modelfile
from utils.export.modelfile_syntax import parse
from utils.export.ollama import write_modelfile
from utils.export.turns import Turns, read_turns, rendered, talk
from utils.lora.checkpoint import load_adapter
from utils.lora.merging import merge_files
from utils.models import ROOT, TINY_DIR, load_base
from utils.tinyworld import task_examples

OUT = ROOT / "assets" / "measurements" / "templates.json"
GOLDEN = ROOT / "tests" / "export" / "renderings.json"
OLLAMA = "template/template.go at commit fb30760 of 2026-08-21"
PROMPTS, MOST = 40, 64
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.0, "repeat_last_n": 64}

WRONG: dict[str, Callable[[str, str], str]] = {
    "as trained": lambda right, words: right,
    "no TEMPLATE: the bare prompt": lambda right, words: words,
    "the TEMPLATE of ChatML": lambda right, words: f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n",
    "the TEMPLATE of Llama 3": lambda right, words: (
        f"<|start_header_id|>user<|end_header_id|>\n\n{words}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "the TEMPLATE of Alpaca": lambda right, words: f"### Instruction:\n{words}\n\n### Response:\n",
    "no generation prompt": lambda right, words: right.removesuffix("<|assistant|>"),
    "a line end behind the generation prompt": lambda right, words: right + "\n",
    "a system message that training never had": lambda right, words: right.replace(
        "<|user|>", "<|user|>You are a helpful assistant.\n", 1
    ),
    "a BOS token that training never had: <|end|>": lambda right, words: "<|end|>" + right,
    "two of them: <|end|><|end|>": lambda right, words: "<|end|><|end|>" + right,
    "<|assistant|> in the place of BOS": lambda right, words: "<|assistant|>" + right,
    "<|user|> twice": lambda right, words: "<|user|>" + right,
}


def tiny_gguf(tokenizer: Any, folder: Path) -> Path:
    """A GGUF file of an untrained Llama with this tokenizer, which is all that a template needs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return to_gguf(folder / "model", folder / "model.gguf", dtype="f32")


def _or_none(render: Callable[[], Any]) -> Any:
    try:
        return render()
    except ValueError:
        return None


def ids_by_transformers(tokenizer: Any) -> dict[str, list[int] | None]:
    """Token ids of every conversation, None for one that the template refuses."""
    texts = {
        name: _or_none(lambda messages=messages: rendered(tokenizer, messages)) for name, messages in TALKS.items()
    }
    return {n: None if t is None else tokenizer(t, add_special_tokens=False).input_ids for n, t in texts.items()}


def ids_by_ollama(tokenizer: Any, turns: Turns, adds_bos: bool) -> dict[str, list[int] | None]:
    """The same by the translated TEMPLATE in Go, with the BOS token that llama.cpp puts in front, if it does."""
    texts = go_render(go_template(turns, bos=not adds_bos), list(TALKS.values()))
    front = [tokenizer.bos_token_id] if adds_bos else []
    return {
        name: None if text is None else front + tokenizer(text, add_special_tokens=False).input_ids
        for name, text in zip(TALKS, texts, strict=True)
    }


def ids_by_llama_cpp(llama: LlamaCpp) -> dict[str, list[int] | None]:
    """The same by llama.cpp's server, which renders the Jinja template in the GGUF file and tokenizes by itself."""
    return {name: _or_none(lambda messages=messages: llama.prompt_ids(messages)) for name, messages in TALKS.items()}


def compared(theirs: Mapping[str, Any], ours: Mapping[str, Any], bos: int | None) -> dict[str, Any]:
    """How many have equal token ids, how many both refuse, which differ, and how many of ours begin with two BOS."""
    differ = [name for name in theirs if theirs[name] != ours[name]]
    refused = sum(theirs[name] is None and ours[name] is None for name in theirs)
    return {
        "equal": len(theirs) - len(differ) - refused,
        "both_refuse": refused,
        "differ": differ,
        "double_bos": sum(bos is not None and (ids or [])[:2] == [bos, bos] for ids in ours.values()),
    }


def family_row(family: Family) -> dict[str, Any]:
    """One family: what its template is made of, and the comparison with llama.cpp and with Ollama."""
    tokenizer = family_tokenizer(family)
    turns = read_turns(tokenizer)
    theirs = ids_by_transformers(tokenizer)
    bos = tokenizer.bos_token_id if turns.bos else None
    row: dict[str, Any] = {
        "form": turns.name,
        "system_place": turns.system_place,
        "default_system": bool(turns.default_system),
        "bos": turns.bos,
        "differences": list(turns.differences),
        "ollama": compared(theirs, ids_by_ollama(tokenizer, turns, family.adds_bos), bos),
    }
    with tempfile.TemporaryDirectory() as folder, LlamaCpp(tiny_gguf(tokenizer, Path(folder))) as llama:
        row["llama.cpp"] = compared(theirs, ids_by_llama_cpp(llama), bos)
    return row


def distance(a: str, b: str, most: int) -> int:
    """Levenshtein's distance between two texts, or `most` where it is that or more."""
    if abs(len(a) - len(b)) >= most:
        return most
    column, infinite = np.arange(len(b) + 1), most
    letters = np.frombuffer(b.encode("utf-32-le"), np.uint32)
    for number, letter in enumerate(a, 1):
        kept = np.minimum(column[1:] + 1, column[:-1] + (letters != ord(letter)))
        column = np.concatenate(([number], kept))
        steps = np.arange(len(column))
        column = np.minimum.accumulate(column - steps) + steps  # what is inserted, one letter after the other
        if column.min() >= infinite:
            return infinite
    return min(int(column[-1]), most)


def guessed(family: Family, folder: Path) -> dict[str, Any] | None:
    """The TEMPLATE that Ollama's importer takes for a GGUF file with this chat template, and how it renders.

    It is the one of its list whose Jinja template is nearest, at a distance below 100 letters; None when none is.
    """
    known = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    distances = [distance(family.template, each["template"], 100) for each in known]
    nearest = min(range(len(known)), key=distances.__getitem__)
    if distances[nearest] >= 100:
        return None
    template = (folder / f"{known[nearest]['name']}.gotmpl").read_text(encoding="utf-8").replace("\r\n", "\n")
    tokenizer = family_tokenizer(family)
    front = [tokenizer.bos_token_id] if family.adds_bos else []
    texts = go_render(template, list(TALKS.values()))
    ours = {
        name: None if text is None else front + tokenizer(text, add_special_tokens=False).input_ids
        for name, text in zip(TALKS, texts, strict=True)
    }
    theirs = ids_by_transformers(tokenizer)
    return {"name": known[nearest]["name"], "distance": distances[nearest], **compared(theirs, ours, None)}


def guesses(folder: Path) -> dict[str, Any]:
    """:func:`guessed` of the six families, and of Phi-3's template as TRL carries it."""
    phi3 = (files("trl") / "chat_templates" / "phi3.jinja").read_text(encoding="utf-8")
    more = {"Phi-3": Family(phi3, None, "<|endoftext|>", ("<|endoftext|>", "<|system|>", "</s>"), False)}
    return {name: guessed(family, folder) for name, family in {**families(), **more}.items()}


def translated() -> dict[str, Any]:
    """Of every chat template that TRL carries for use: whether it is translated, and what differs, or why it isn't."""
    found: dict[str, Any] = {}
    tokenizer = family_tokenizer(families()["Llama 3"])
    for file in sorted((files("trl") / "chat_templates").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".jinja") or "_training" in file.name:
            continue
        tokenizer.chat_template = file.read_text(encoding="utf-8")
        try:
            found[file.name.removesuffix(".jinja")] = {"differences": list(read_turns(tokenizer).differences)}
        except ExportError as error:
            found[file.name.removesuffix(".jinja")] = {"refused": str(error).split(". Leave")[0]}
    return found


@torch.inference_mode()
def answered(model: Any, tokenizer: Any, texts: Sequence[str], ends: bool = True) -> list[tuple[str, int]]:
    """Greedy answers to texts as they are, and how many tokens each has; without `ends` EOS stops nothing."""
    found = []
    for text in texts:
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
        how = {"eos_token_id": tokenizer.eos_token_id} if ends else {"eos_token_id": None}
        output = model.generate(
            **inputs, max_new_tokens=MOST, do_sample=False, pad_token_id=tokenizer.pad_token_id, **how
        )
        new = output[0, inputs.input_ids.shape[1] :].tolist()
        found.append((tokenizer.decode(new, skip_special_tokens=True).strip(), len(new)))
    return found


@torch.inference_mode()
def loss(model: Any, tokenizer: Any, texts: Sequence[str], wanted: Sequence[str]) -> float:
    """The mean loss of the right answers' tokens and of their EOS token, in nats, behind these texts."""
    losses = []
    for text, right in zip(texts, wanted, strict=True):
        before = tokenizer(text, add_special_tokens=False).input_ids
        answer = [*tokenizer(right, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        logits = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item())
    return sum(losses) / len(losses)


def symptom(
    model: Any, tokenizer: Any, texts: Sequence[str], wanted: Sequence[str], ends: bool = True
) -> dict[str, Any]:
    """How many answers are right, how many begin right, their mean length in tokens, the loss, and the first answer."""
    answers = answered(model, tokenizer, texts, ends)
    return {
        "right": sum(text == right for (text, _), right in zip(answers, wanted, strict=True)),
        "begin_right": sum(text.startswith(right) for (text, _), right in zip(answers, wanted, strict=True)),
        "of": len(wanted),
        "mean_tokens": round(sum(n for _, n in answers) / len(answers), 1),
        "loss": round(loss(model, tokenizer, texts, wanted), 3),
        "first": answers[0][0],
    }


def symptoms(prompts: int) -> dict[str, Any]:
    """What the tiny model with its pirate adapter answers in each rendering, without EOS, and beside another base."""
    rows = task_examples("style", "test", prompts)
    base, tokenizer = load_base(torch.float32)
    wanted = [row.answer for row in rows]
    right = [rendered(tokenizer, [{"role": "user", "content": row.prompt}]) for row in rows]
    found: dict[str, Any] = {"prompt": rows[0].prompt, "wanted": wanted[0]}
    found["without the adapter"] = symptom(base, tokenizer, right, wanted)
    load_adapter(base, ROOT / "assets" / "adapters" / "style")
    for name, rendering in WRONG.items():
        texts = [rendering(text, row.prompt) for text, row in zip(right, rows, strict=True)]
        found[name] = symptom(base, tokenizer, texts, wanted)
    found["EOS stops nothing"] = symptom(base, tokenizer, right, wanted, ends=False)
    other = load_base(torch.float32)[0]
    merge_files(other, ROOT / "assets" / "adapters" / "translation")
    load_adapter(other, ROOT / "assets" / "adapters" / "style")
    found["beside another base (the translator, merged)"] = symptom(other, tokenizer, right, wanted)
    return found


def by_modelfile(text: str, folder: Path, prompts: Sequence[str]) -> list[str]:
    """Greedy answers by what a Modelfile says, with the parts that Ollama is made of.

    Its TEMPLATE is rendered by Go, and llama.cpp's server runs base and adapter, with its parameters and stop strings,
    and Ollama's defaults for what it doesn't say.
    """
    commands = dict(parse(text))
    stops = [command.value for command in parse(text) if command.name == "parameter stop"]
    sampling = {name: float(commands.get(f"parameter {name}", usual)) for name, usual in SAMPLING.items()}
    texts = go_render(commands.get("template", "{{ .Prompt }}"), [talk(f"user: {prompt}") for prompt in prompts])
    with LlamaCpp(folder / commands["from"], {"adapter": folder / commands["adapter"]}) as llama:
        ids = [llama.token_ids(text or "", special=True) for text in texts]
        return llama.complete(ids, MOST, adapter="adapter", stop=stops, **sampling)


def modelfiles(prompts: int) -> dict[str, Any]:
    """The tiny model and its pirate through a Modelfile, whole and with a part taken out, against transformers."""
    rows = task_examples("style", "test", prompts)
    asked = [row.prompt for row in rows]
    model, tokenizer = load_base(torch.float32)
    load_adapter(model, ROOT / "assets" / "adapters" / "style")
    theirs = complete(model, tokenizer, asked, MOST)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = to_gguf(TINY_DIR, folder / "base.gguf", dtype="f32")
        adapter = to_gguf(ROOT / "assets" / "adapters" / "style", folder / "adapter.gguf", dtype="f32", base=TINY_DIR)
        text = write_modelfile(folder, base, adapter, tokenizer=tokenizer).read_text(encoding="utf-8")
        chatml = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}"
        for what, changed in {
            "as modelfile() writes it": text,
            "without PARAMETER stop": re.sub(r"PARAMETER stop .*\n", "", text),
            "without PARAMETER temperature": re.sub(r"PARAMETER temperature .*\n", "", text),
            "with PARAMETER repeat_penalty 1.1": text.replace("repeat_penalty 1\n", "repeat_penalty 1.1\n"),
            "without TEMPLATE, as {{ .Prompt }}": re.sub(r'(?s)TEMPLATE """.*?"""\n', "", text),
            "with ChatML's TEMPLATE": re.sub(
                r'(?s)TEMPLATE """.*?"""\n',
                lambda _: f'TEMPLATE """{chatml}<|im_end|>\n<|im_start|>assistant\n"""\n',
                text,
            ),
        }.items():
            ours = by_modelfile(changed, folder, asked)
            found[what] = {
                "equal_to_transformers": sum(a == b for a, b in zip(theirs, ours, strict=True)),
                "right": sum(a == row.answer for a, row in zip(ours, rows, strict=True)),
                "of": prompts,
                "first": ours[0],
                "findings": [one.name for one in check_modelfile(changed, tokenizer=tokenizer, folder=folder)],
            }
    return found


def golden() -> dict[str, Any]:
    """By family the translated TEMPLATE, without BOS, and what Go makes of every conversation; None for an error."""
    found = {}
    for name, family in families().items():
        template = go_template(read_turns(family_tokenizer(family)))
        found[name] = {"template": template, "renderings": go_render(template, list(TALKS.values()))}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trial", action="store_true", help="one family and four prompts")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--guess", type=Path, metavar="DIR", help="Ollama's folder template/: what its importer guesses"
    )
    parser.add_argument("--golden", action="store_true", help="write what Go renders, for tests without Go")
    chosen = parser.parse_args(arguments)
    if chosen.guess:
        record = json.loads(chosen.out.read_text(encoding="utf-8"))
        write(chosen.out, {**record, "guessed_by_ollama": guesses(chosen.guess)})
        return
    if chosen.golden:
        write(GOLDEN, golden())
        return
    if chosen.trial and chosen.out == OUT:
        parser.error("a trial is no record: name another file with --out")
    todo = dict(list(families().items())[: 1 if chosen.trial else None])
    record: dict[str, Any] = {
        "what": f"{len(TALKS)} conversations rendered by transformers, llama.cpp and Ollama's engine; wrong renderings",
        "tool": "python -m tools.measure_templates",
        "seeds": [0],
        **provenance("cpu"),
        "versions": {"xllamacpp": version("xllamacpp"), "trl": version("trl"), "go": go_version(), "ollama": OLLAMA},
        "conversations": len(TALKS),
        "families": {name: family_row(family) for name, family in todo.items()},
        "trl_templates": translated(),
        "symptoms": symptoms(4 if chosen.trial else PROMPTS),
        "modelfiles": modelfiles(4 if chosen.trial else PROMPTS),
    }
    write(chosen.out, record)
    for name, row in record["families"].items():
        print(name, "ollama", row["ollama"], "llama.cpp", row["llama.cpp"], sep="\n  ")
    for name, row in {**record["symptoms"], **record["modelfiles"]}.items():
        print(name, row)


if __name__ == "__main__":
    main()
