"""A chat template in the language of Ollama's Modelfile: Go's text/template, with Ollama's own fields.

Ollama joins neighbouring messages of one role and gives the template ``.Messages`` (each with ``.Role`` and
``.Content``) and ``.System``, all system messages joined. There are no functions on strings, so nothing can be trimmed.
A template can refuse: a call of one that isn't defined ends in an error that holds its name.
(https://github.com/ollama/ollama/blob/main/docs/template.mdx and template/template.go there.)
"""

from __future__ import annotations

from utils.export.turns import Turns


def go_template(turns: Turns, *, bos: bool = False) -> str:
    """The TEMPLATE that makes Ollama render conversations as :meth:`Turns.render` does.

    The BOS token is left out: llama.cpp puts it in front by itself where the GGUF file says so
    (``tokenizer.ggml.add_bos_token``). With `bos` the template writes it, for a file that doesn't. Every text is a
    quoted string and all space outside of them is trimmed, so the lines can be read and changed.
    """
    has_system = '(eq (index .Messages 0).Role "system")'
    lines = []
    if head := (turns.bos if bos else "") + turns.head:
        lines.append(_write(head))
    if turns.default_system:
        lines.append(f"{{{{- if not {has_system} }}}}{_write(turns.default_system)}{{{{ end }}}}")
    folded = turns.system_place in ("first user", "last user")
    if folded:
        lines.append(f"{{{{- $system := {has_system} }}}}")
    lines += ['{{- $role := "" }}', "{{- range $i, $_ := .Messages }}", "{{- $role = .Role }}"]
    lines.append("{{- $last := eq (len (slice $.Messages $i)) 1 }}")
    if turns.system_place == "turn":
        lines.append('{{- if eq .Role "system" }}' + _between(turns.system))
    elif turns.system_place == "refused":
        lines.append('{{- if eq .Role "system" }}' + _refuse("this model takes no system message"))
    else:
        lines.append('{{- if eq .Role "system" }}')
    before, behind = turns.user
    system = ""
    if folded:
        once = "{{ $system = false }}" if turns.system_place == "first user" else ""
        when = "$system" if turns.system_place == "first user" else "and $last $system"
        system = f"{{{{ if {when} }}}}{{{{ $.System }}}}{_write(turns.system[1])}{once}{{{{ end }}}}"
    lines.append(f'{{{{- else if eq .Role "user" }}}}{_write(before)}{system}{{{{ .Content }}}}{_write(behind)}')
    before, behind = turns.assistant
    close = f"{{{{ if not $last }}}}{_write(behind)}{{{{ end }}}}" if behind else ""
    lines.append(f'{{{{- else if eq .Role "assistant" }}}}{_write(before)}{{{{ .Content }}}}{close}')
    lines.append("{{- else }}" + _refuse("this template knows system, user and assistant alone"))
    lines += ["{{- end }}", "{{- end }}"]
    if turns.generation:
        lines.append(f'{{{{- if ne $role "assistant" }}}}{_write(turns.generation)}{{{{ end }}}}')
    return "\n".join(lines)


def _between(pair: tuple[str, str]) -> str:
    return f"{_write(pair[0])}{{{{ .Content }}}}{_write(pair[1])}"


def _refuse(words: str) -> str:
    return f"{{{{ template {quoted(words)} . }}}}"


def _write(text: str) -> str:
    return f"{{{{ {quoted(text)} }}}}" if text else ""


def quoted(text: str) -> str:
    """`text` as a string of Go's in double quotes. What isn't printable ASCII is escaped.

    A Modelfile's parser drops characters that aren't printable, such as the no-break space; an escape survives it.
    """
    plain = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
    return '"' + "".join(plain.get(c) or (c if " " <= c <= "~" else _escape(ord(c))) for c in text) + '"'


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
