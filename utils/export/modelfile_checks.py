"""What is wrong with a Modelfile, by name: template, stop, BOS, base, adapter, context.

Each finding is something that Ollama accepts in silence and that shows in the answers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.export.errors import ExportError
from utils.export.finding import Finding
from utils.export.gguf_facts import GGUFFacts, gguf_facts
from utils.export.go_template import quoted
from utils.export.modelfile_syntax import Command, parse
from utils.export.ollama import added_tokens, default_context, ends
from utils.export.parameters import PARAMETERS, fault, read_value
from utils.export.turns import Turns, read_turns
from utils.files import expanded
from utils.lora.adapter_config import short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WHOLE = frozenset(("F32", "F16", "BF16"))


def check_modelfile(
    text: str, *, tokenizer: PreTrainedTokenizerBase | None = None, folder: str | Path = "."
) -> list[Finding]:
    """What is wrong with a Modelfile's `text`, the most harmful first; empty when nothing was found.

    Relative paths are looked for in `folder`; what FROM and ADAPTER name there is read, and what is missing isn't. The
    tokenizer is the adapter's, as transformers loads it: without one the template is looked at less closely. Raises
    ExportError for what Ollama itself refuses, with the line.
    """
    commands = parse(text)
    base = _facts(commands, "from", expanded(folder))
    adapter = _facts(commands, "adapter", expanded(folder))
    turns: Turns | None = None
    if tokenizer is not None:
        try:
            turns = read_turns(tokenizer)
        except ExportError:
            turns = None  # not translated: what it writes isn't known
    template = _last(commands, "template")
    return [
        *_template(template, base, tokenizer, turns),
        *_stop(commands, base, tokenizer, turns),
        *_bos(template, base, turns),
        *_base(commands, base, adapter),
        *_adapter(commands, base, adapter),
        *_parameters(commands, base, tokenizer.model_max_length if tokenizer is not None else None),
    ]


def _values(commands: Sequence[Command], name: str) -> list[str]:
    return [command.value for command in commands if command.name == name]


def _last(commands: Sequence[Command], name: str) -> str | None:
    return next(reversed(_values(commands, name)), None)


def _facts(commands: Sequence[Command], name: str, folder: Path) -> GGUFFacts | None:
    value = _last(commands, name)
    path = folder / expanded(value) if value else None
    return gguf_facts(path) if path is not None and path.is_file() else None


def _template(
    template: str | None, base: GGUFFacts | None, tokenizer: PreTrainedTokenizerBase | None, turns: Turns | None
) -> list[Finding]:
    write = 'modelfile(..., template="go") writes the translated one'
    if template is None:
        if base is None or not base.chat_template:
            what = "no TEMPLATE, and no chat template is known of the GGUF file: the model gets the bare prompt"
        else:
            what = (
                "no TEMPLATE: Ollama compares the GGUF file's chat template with those that it knows and takes a near "
                "one, or else leaves it to llama.cpp (older versions: sends the bare prompt)"
            )
        return [Finding("no template", what, write)]
    found = []
    if tokenizer is not None and turns is not None:
        pieces = "".join((*turns.user, *turns.assistant, turns.generation, turns.default_system))
        written = [token for token in sorted(added_tokens(tokenizer)) if token in pieces]
        missing = [token for token in written if token not in template and quoted(token)[1:-1] not in template]
        if missing:
            what = f"TEMPLATE doesn't write {', '.join(missing)}, which the base's chat template writes around messages"
            found.append(
                Finding("another template", f"{what}: the model sees prompts of a kind it never learned", write)
            )
        opening = quoted(turns.generation)[1:-1]
        if turns.generation and not missing and not _ends_with(template, (turns.generation, opening)):
            what = f"TEMPLATE doesn't end with {turns.generation!r}, so nothing says that the assistant is to answer"
            found.append(Finding("no generation prompt", what, write))
        if turns.default_system and "system" not in template.lower():
            what = "the base's chat template writes a system message of its own where there is none; TEMPLATE doesn't"
            found.append(Finding("no default system message", what, write))
    if base is not None and "tool" in base.chat_template and ".Tools" not in template:
        what = (
            "the GGUF file's chat template speaks of tools and TEMPLATE doesn't: Ollama (2026) then leaves TEMPLATE "
            "aside and has llama.cpp render the file's own"
        )
        cure = "fine when both render alike; start the server with OLLAMA_GO_TEMPLATE=1 to have TEMPLATE used"
        found.append(Finding("template left aside", what, cure))
    return found


def _ends_with(template: str, endings: Sequence[str]) -> bool:
    """Whether the last text that the template writes is one of these: literal, quoted, or before .Response."""
    rest = template
    for tail in ("{{ end }}", "{{- end }}", '" }}', "{{ .Response }}", "{{.Response}}"):
        rest = rest.removesuffix(tail)
    if ".Response" in rest:
        rest = rest[: rest.index(".Response")].rsplit("{{", 1)[0]
    return rest.endswith(tuple(endings))


def _stop(
    commands: Sequence[Command],
    base: GGUFFacts | None,
    tokenizer: PreTrainedTokenizerBase | None,
    turns: Turns | None,
) -> list[Finding]:
    stops = _values(commands, "parameter stop")
    if tokenizer is not None:
        wanted = ends(tokenizer, turns)
        wanted = [turns_end for turns_end in wanted if turns is None or turns_end in turns.assistant[1]] or wanted
    else:
        wanted = [base.eos] if base is not None and base.eos else []
    missing = [end for end in wanted if end not in stops and not (base is not None and base.eos == end)]
    if not missing:
        return []
    what = f"nothing stops at {', '.join(missing)}: no PARAMETER stop, and it isn't known as the GGUF file's EOS token"
    cure = "\n".join(f'PARAMETER stop "{end}"' for end in missing)
    return [Finding("no stop", f"{what}. The answer begins right and then runs on", cure)]


def _bos(template: str | None, base: GGUFFacts | None, turns: Turns | None) -> list[Finding]:
    if base is None:
        return []
    bos = turns.bos if turns is not None else base.bos
    starts = template is not None and bos != "" and _starts_with(template, bos)
    if base.adds_bos and starts:
        what = f"TEMPLATE begins with {bos} and llama.cpp puts it in front as well (tokenizer.ggml.add_bos_token)"
        cure = "take it out of TEMPLATE; Ollama of 2026 takes one of the two out, older versions don't"
        return [Finding("double BOS", what, cure)]
    if turns is None:
        return []
    if base.adds_bos and not turns.bos and template is not None:
        what = f"the GGUF file adds {base.bos or 'a BOS token'}, and the base's chat template has none in front"
        return [
            Finding("BOS too many", what, "write the GGUF file with tokenizer.ggml.add_bos_token false (to_gguf does)")
        ]
    if not base.adds_bos and turns.bos and template is not None and not starts:
        what = f"the base's chat template begins with {turns.bos}; neither TEMPLATE nor the GGUF file puts it in front"
        return [Finding("no BOS", what, "modelfile() writes it into TEMPLATE for such a file")]
    return []


def _starts_with(template: str, text: str) -> bool:
    begin = template.lstrip()
    for opening in ('{{- "', '{{ "', "{{- `", "{{ `"):
        begin = begin.removeprefix(opening)
    return begin.startswith((text, quoted(text)[1:-1]))


def _base(commands: Sequence[Command], base: GGUFFacts | None, adapter: GGUFFacts | None) -> list[Finding]:
    name = _last(commands, "from") or ""
    if base is None and (name.startswith((".", "/", "~")) or name.endswith(".gguf")):
        what = f"there is no file {name}, so Ollama takes it for a model's name"
        return [Finding("no file", what, "check the path: it counts from the Modelfile's folder")]
    if not _values(commands, "adapter"):
        return []
    if base is None:
        what = f"FROM {name} is a model of Ollama's library, most likely quantized to 4 bits, and maybe another version"
        return [Finding("another base", what, "FROM the GGUF file of the very base that the adapter was trained on")]
    found = []
    if adapter is not None:
        if base.architecture != adapter.architecture:
            what = f"the adapter is for the architecture {adapter.architecture!r}, the base is {base.architecture!r}"
            found.append(Finding("another base", what, "FROM the base that the adapter was trained on"))
        elif wrong := _unfit(base, adapter):
            what = f"{len(wrong)} of the adapter's tensors don't fit the base, {wrong[0]} for one: llama.cpp refuses it"
            found.append(Finding("another base", what, "FROM the base that the adapter was trained on"))
    few = sorted(set(base.dtypes) - _WHOLE)
    if few:
        what = f"the base is stored in {', '.join(few)}; the adapter was trained beside other numbers"
        found.append(Finding("quantized base", what, "measure it, or FROM a base in F16 (to_gguf(..., dtype='f16'))"))
    return found


def _unfit(base: GGUFFacts, adapter: GGUFFacts) -> list[str]:
    """The adapter's tensors that find no weight of the base, or one of another shape."""
    wrong = []
    for name, shape in adapter.shapes.items():
        weight = name.removesuffix(".lora_a").removesuffix(".lora_b")
        here = base.shapes.get(weight)
        fits = here is not None and (shape[-1] == here[-1] if name.endswith("lora_a") else shape[0] == here[0])
        if not fits and not (here is not None and "token_embd" in weight):  # stored the other way around
            wrong.append(name)
    return wrong


def _adapter(commands: Sequence[Command], base: GGUFFacts | None, adapter: GGUFFacts | None) -> list[Finding]:
    found = []
    paths = _values(commands, "adapter")
    if len(paths) > 1:
        what = f"{len(paths)} ADAPTER lines, and Ollama takes one: the last, {paths[-1]}"
        found.append(Finding("several adapters", what, "merge the others, or use llama.cpp's server or vLLM"))
    if adapter is not None and adapter.kind != "adapter":
        what = f"ADAPTER names a GGUF file of the type {adapter.kind!r}"
        found.append(Finding("no adapter", what, "write the adapter with to_gguf(adapter_folder, path)"))
    if base is not None and base.kind == "adapter":
        found.append(Finding("no base", "FROM names an adapter", "FROM the base, ADAPTER the adapter"))
    return found


def _parameter(name: str, text: str) -> list[Finding]:
    """What is wrong with one PARAMETER line by itself."""
    if name not in PARAMETERS:
        what = f"PARAMETER {name} isn't one of Ollama's: it refuses the Modelfile, or leaves out an old one"
        return [Finding("unknown parameter", what, f"one of {', '.join(sorted(PARAMETERS))}", "refuses")]
    cure = f"PARAMETER {name} with {PARAMETERS[name].words}"
    try:
        wrong = fault(name, read_value(name, text))
    except ValueError:
        return [Finding("unreadable parameter", f"Ollama refuses PARAMETER {name} {short(text)}", cure, "refuses")]
    return [Finding("impossible parameter", f"{wrong}, and Ollama takes it in silence", cure)] if wrong else []


def _parameters(commands: Sequence[Command], base: GGUFFacts | None, trained: int | None) -> list[Finding]:
    found = []
    for command in commands:
        if command.name.startswith("parameter "):
            found += _parameter(command.name.split(" ", 1)[1], command.value)
    context = _last(commands, "parameter num_ctx")
    longest = base.context if base is not None else trained
    if context is None:
        what = (
            "no num_ctx: Ollama takes 4,096 tokens on a GPU of less than 24 GiB (2,048 in older versions), and drops "
            "the first messages of a longer conversation in silence"
        )
        found.append(Finding("no num_ctx", what, f"PARAMETER num_ctx {default_context(longest)}"))
    elif longest is not None and context.isdecimal() and int(context) > longest:
        what = f"num_ctx is {context}, and the base knows {longest} positions"
        found.append(Finding("num_ctx too long", what, f"PARAMETER num_ctx {longest}"))
    if _last(commands, "parameter temperature") is None:
        what = "no temperature: Ollama samples at 0.8, so answers differ from the notebook's greedy ones"
        found.append(Finding("no temperature", what, "PARAMETER temperature 0"))
    return found
