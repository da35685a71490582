"""Change one thing in utils/, run the tests of that module, and see whether one fails: are the tests any good?

    python -m tools.mutants --count 200             (200 mutants of the sample; started again, it goes on)
    python -m tools.mutants --under utils/quant     (of this package or file alone)
    python -m tools.mutants --again                 (run those that survived once more, after tests were added)
    python -m tools.mutants --report                (the score and the survivors so far; runs nothing)

A *mutant* is the course with one operator, number or statement changed (:data:`OPERATORS`). It is killed when a test
fails, hangs or can't be collected, and survives when all pass: then the line isn't tested, or the change changes
nothing. The sample is drawn by --seed; a larger --count goes on in the same order. Everything runs in a copy in a
temporary folder, one mutant at a time, each in a child of a process that has imported the large libraries once. The
journal (--journal, a line of JSON each) is what makes it resumable; a line of utils/ that changed since is judged anew.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "bitsandbytes",
    "hypothesis",
    "matplotlib.pyplot",
    "pytest",
)

# Tests of a module that don't stand at tests/PACKAGE/test_MODULE*.py, or not all of them.
ELSEWHERE = {
    "course/checks/tried": ["tests/course/test_checks_relations.py", "tests/course/test_checks_where.py"],
    "data/rows": ["tests/data/test_formats.py", "tests/data/test_kinds.py"],
    "models/ends": ["tests/inference/test_decoding.py", "tests/evaluate/test_metrics.py"],
    "data/stream": ["tests/train/test_engines.py"],
    "distributed/average": ["tests/distributed/test_by_hand.py"],
    "distributed/bytes": ["tests/distributed/test_by_hand.py"],
    "distributed/ring": ["tests/distributed/test_by_hand.py"],
    "distributed/shard": ["tests/distributed/test_by_hand.py"],
    "distributed/worker": ["tests/distributed/test_start.py"],
    "export/adapter_facts": ["tests/export/test_preflight_report.py"],
    "export/breakages": ["tests/export/test_llama_cpp.py"],
    "export/edit": ["tests/export/test_gguf.py", "tests/export/test_faults.py"],
    "export/finding": ["tests/export/test_modelfile_checks.py", "tests/export/test_preflight_report.py"],
    "export/gguf_adapter": ["tests/export/test_gguf.py", "tests/export/test_parity.py"],
    "export/hub_card": ["tests/export/test_hub.py"],
    "export/names": ["tests/export/test_gguf.py", "tests/export/test_parity.py"],
    "export/preflight_rules": ["tests/export/test_preflight_report.py"],
    "export/weights": ["tests/export/test_gguf.py", "tests/export/test_parity.py"],
    "profiling/several": ["tests/profiling/test_scaling.py", "tests/profiling/test_ranks.py"],
    "train/consolidate": ["tests/train/test_engines.py"],
    "train/engine_run": ["tests/train/test_engines.py"],
    "train/lost_rank": ["tests/train/test_engines.py"],
    "train/run_file": ["tests/train/test_engines.py"],
    "train/shard_on_cpu": ["tests/train/test_engines.py"],
    "data/labels": ["tests/data/test_instructions.py", "tests/data/test_packing.py"],
    "evaluate/diagnose_cases": ["tests/evaluate/test_diagnose.py"],
    "evaluate/gates": ["tests/test_base_model.py", "tests/evaluate/test_forgetting.py"],
    "lora/adapter_config": ["tests/lora/test_checkpoint.py"],
    "lora/adalora": ["tests/lora/test_variants.py"],
    "lora/nf4_linear": ["tests/lora/test_variants.py"],
    "lora/refusals": ["tests/lora/test_layer.py", "tests/lora/test_variants.py", "tests/lora/test_fused.py"],
    "models/configs": ["tests/profiling/test_memory.py", "tests/quant/test_nf4.py"],
    "models/device": ["tests/models/test_precision.py", "tests/models/test_loading.py"],
    "models/errors": ["tests/models/test_loading.py", "tests/models/test_loading_hub.py"],
    "models/smollm2": ["tests/models/test_loading_small.py"],
    "profiling/adapter_forms": ["tests/tools/gpu/test_latency.py"],
    "profiling/meta_layers": ["tests/profiling/test_memory.py"],
    "profiling/peak": ["tests/profiling/test_memory.py"],
    "profiling/techniques": ["tests/tools/gpu/test_techniques.py"],
    "quant/absmax": ["tests/quant/test_nf4.py", "tests/quant/test_nf4_bitsandbytes.py"],
    "start/commands": ["tests/start/test_entry.py", "tests/start/test_failures.py", "tests/start/test_set_up.py"],
    "start/pip": ["tests/start/test_set_up.py", "tests/start/test_failures.py"],
    "start/programs": ["tests/start/test_lab.py", "tests/start/test_testing.py"],
    "start/servers": ["tests/start/test_lab.py"],
    "start/torch_build": ["tests/start/test_set_up.py"],
    "start/venv": ["tests/start/test_set_up.py"],
    "start/wheels": ["tests/tools/test_classroom.py"],
    "start/words": ["tests/start/test_set_up.py", "tests/start/test_failures.py"],
    "tinyworld/corpus": ["tests/tinyworld/test_tinyworld.py"],
    "tinyworld/tasks": ["tests/tinyworld/test_tinyworld.py"],
}
# The checks of a chapter are tests themselves, and what a lesson's build generates is that lesson's.
LEFT_OUT = re.compile(r"__init__\.py$|utils/course/checks/(references/)?ch\d\d\.py$")
LOOKS = "utils/plots/"  # numbers there are widths and margins, which nobody can call wrong

OPERATORS = {
    "compare": "< and <=, > and >=, == and !=, `is` and `is not`, `in` and `not in` exchanged",
    "arithmetic": "+ and -, * and /, // to /, % to *, ** to * exchanged",
    "boolean": "`and` and `or` exchanged",
    "not": "a `not` taken away",
    "condition": "the condition of an `if`, a `while` or a comprehension turned round",
    "number": "a whole number made larger by one, a fraction doubled, 0.0 made 1.0",
    "truth": "True and False exchanged",
    "slice": "one bound of a slice taken away",
    "statement": "a call, an assignment to an attribute or an item, or a `raise` replaced by `pass`",
}
_COMPARE = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"),
}  # fmt: skip


class Mutant(NamedTuple):
    """One change: bytes `start` to `end` of `file` become `new`. sha: of the file that the offsets belong to; key: what
    the journal knows it by, which stays the same while its line does."""

    file: str
    sha: str
    line: int
    operator: str
    start: int
    end: int
    old: str
    new: str
    key: str


# --------------------------------------------------------------------------------------------------- finding mutants


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)


class _Finder(ast.NodeVisitor):
    """Walks a module's tree, past what no test could speak of: docstrings, messages, type hints, decorators."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.sha = hashlib.sha256(source).hexdigest()[:12]
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.found: list[Mutant] = []
        self.seen: Counter[str] = Counter()

    def at(self, line: int, column: int) -> int:
        return self.lines[line - 1] + column

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def add(self, operator: str, start: int, end: int, new: str) -> None:
        line = self.source.count(b"\n", 0, start)
        text, column = self.source[self.lines[line] : self.lines[line + 1]].strip(), start - self.lines[line]
        key = hashlib.sha256(repr((self.file, text, column, operator, new)).encode()).hexdigest()[:16]
        self.seen[key] += 1  # the same change of an equal line further down is another
        old = self.source[start:end].decode()
        self.found.append(
            Mutant(self.file, self.sha, line + 1, operator, start, end, old, new, f"{key}-{self.seen[key]}")
        )

    def between(self, operator: str, left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        """Exchange the operator that stands between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        word = re.compile((r"\b" + old.replace(" ", r"\s+") + r"\b" if old[0].isalpha() else re.escape(old)).encode())
        found = word.search(self.source, start, end)
        if found:
            self.add(operator, found.start(), found.end(), new)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, kind, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between("compare", left, right, *_COMPARE[type(kind)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = any(isinstance(x, ast.JoinedStr) or _is_text(x) for x in (node.left, node.right))
        if type(node.op) in _ARITHMETIC and not text:  # with a text it joins a path or a message
            self.between("arithmetic", node.left, node.right, *_ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between("boolean", left, right, *words)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.add("not", self.span(node)[0], self.span(node.operand)[0], "")
        self.generic_visit(node)

    def condition(self, test: ast.expr) -> None:
        if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.NamedExpr):
            start, end = self.span(test)
            self.add("condition", start, end, f"not ({self.source[start:end].decode()})")

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self.condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.condition(test)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        start, end = self.span(node)
        if isinstance(node.value, bool):
            self.add("truth", start, end, str(not node.value))
        elif isinstance(node.value, int | float) and not self.file.startswith(LOOKS):
            self.add(
                "number", start, end, str(node.value + 1 if isinstance(node.value, int) else node.value * 2 or 1.0)
            )

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None:
                self.add("slice", *self.span(bound), "")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self.add("statement", *self.span(node), "pass")
            if not ast.unparse(node.value.func).endswith(("warn", "print")):
                self.generic_visit(node)
        elif not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self.add("statement", *self.span(node), "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add("statement", *self.span(node), "pass")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add("statement", *self.span(node), "pass")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # zip's: where the lengths agree, which it asserts, False changes nothing
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """Every mutant of a module, in the order of its text. Those that are no Python any more are left out."""
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    return [m for m in sorted(finder.found, key=lambda m: (m.start, m.end, m.new)) if _parses(mutated(source, m))]


def mutated(source: bytes, mutant: Mutant) -> bytes:
    """The module with the change made."""
    return source[: mutant.start] + mutant.new.encode() + source[mutant.end :]


def _parses(source: bytes) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


def modules(root: Path, under: str = "utils") -> list[str]:
    """The modules below `under` that are changed, as paths from `root`."""
    files = [root / under] if under.endswith(".py") else sorted((root / under).rglob("*.py"))
    return [name for path in files if not LEFT_OUT.search(name := path.relative_to(root).as_posix())]


def sample(root: Path, seed: int, under: str = "utils") -> list[Mutant]:
    """All mutants below `under`, each in a place that `seed` and its own line decide, whatever else changes."""
    found = [m for name in modules(root, under) for m in mutants_of(name, (root / name).read_bytes())]
    return sorted(found, key=lambda m: hashlib.sha256(f"{seed}:{m.key}".encode()).digest())


def tests_of(file: str, root: Path = ROOT) -> list[str]:
    """The test files that a module is held to: tests/PACKAGE/test_MODULE*.py (or test_PACKAGE_MODULE*.py one folder
    further up), and what :data:`ELSEWHERE` names."""
    path = Path(file).relative_to("utils").with_suffix("")
    folder = root / "tests" / path.parent
    mirror = [*folder.glob(f"test_{path.name}*.py"), *folder.parent.glob(f"test_{folder.name}_{path.name}*.py")]
    return sorted({*(p.relative_to(root).as_posix() for p in mirror), *ELSEWHERE.get(path.as_posix(), [])})


# --------------------------------------------------------------------------------------------------- running mutants


def copy_of(root: Path, folder: Path) -> Path:
    """A copy of what git knows of the repository, with what is new in it and without what it ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    return folder


def _child(folder: Path, tests: Sequence[str], options: Sequence[str]) -> int:
    """In a child process: pytest over `tests` in `folder`, which no module of the checkout may enter."""
    os.setsid()
    os.chdir(folder)
    with open(folder / "mutant.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.path[:] = [str(folder), *(p for p in sys.path if not (Path(p) / "utils" / "tinyworld").is_dir())]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tools", "utils", "tests")]:
        del sys.modules[name]
    import pytest

    plugins = ["-p", "no:cacheprovider", "-p", "no:nbval", "-p", "no:xdist"]
    return int(pytest.main(["-x", "-q", *plugins, "--hypothesis-seed=0", *options, *tests]))


def run_tests(folder: Path, tests: Sequence[str], options: Sequence[str], timeout: float) -> tuple[str, float]:
    """Run `tests` in a child of this process: "passed", "failed" or "timeout", and the seconds it took."""
    began, child = time.monotonic(), os.fork()
    if not child:
        code = 1
        try:
            code = _child(folder, tests, options)
        finally:
            sys.stdout.flush()  # os._exit doesn't: what pytest said last was lost where no line ended the buffer
            sys.stderr.flush()
            os._exit(code)
    while time.monotonic() - began < timeout:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            passed = os.waitstatus_to_exitcode(status) == 0
            return "passed" if passed else "failed", time.monotonic() - began
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout", time.monotonic() - began


class Journal:
    """A line of JSON for each mutant that was judged and each module whose tests were run without one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, lines)}

    def write(self, **row: Any) -> None:
        """Keep a row; one of the same key takes its place."""
        self.rows[row["key"]] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def judge(
    mutants: Sequence[Mutant], journal: Journal, *, root: Path, seconds: float, options: Sequence[str], again: bool
) -> Iterator[dict[str, Any]]:
    """Run the mutants that the journal doesn't hold (`again`: and those that nothing killed) until `seconds` are over,
    and yield each one's row.
    """
    began = time.monotonic()
    wanted = [m for m in mutants if m.key not in journal.rows or (again and journal.rows[m.key]["end"] != "killed")]
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        folder = copy_of(root, Path(scratch))
        os.environ["PYTHONPATH"] = str(folder)
        for mutant in wanted:
            if time.monotonic() - began > seconds:
                return
            tests = tests_of(mutant.file, folder)
            digest = hashlib.sha256(b"".join((folder / t).read_bytes() for t in tests)).hexdigest()[:12]
            name = f"{mutant.file}:{mutant.sha}:{digest}"  # without a change
            if name not in journal.rows:
                end, took = run_tests(folder, tests, options, 900) if tests else ("no tests", 0.0)
                log = (folder / "mutant.log").read_text(errors="replace").splitlines() if end == "failed" else []
                said = [text for text in log if text.startswith(("FAILED", "ERROR"))] or log[-1:]
                journal.write(key=name, file=mutant.file, end=end, seconds=round(took, 1), said=said)
            base = journal.rows[name]
            if base["end"] == "passed":
                path = folder / mutant.file
                source = path.read_bytes()
                path.write_bytes(mutated(source, mutant))
                end, took = run_tests(folder, tests, options, 30 + 3 * base["seconds"])
                path.write_bytes(source)
                end = "survived" if end == "passed" else "killed"
            else:  # nothing can be said of it
                end, took = "unknown", 0.0
            row = mutant._asdict() | {"end": end, "seconds": round(took, 1)}
            journal.write(**row)
            yield row


def summary(mutants: Sequence[Mutant], journal: Journal) -> str:
    """The score of those that were judged, and each survivor with its change."""
    rows = [journal.rows[m.key] for m in mutants if m.key in journal.rows]
    ends = {end: [row for row in rows if row["end"] == end] for end in ("killed", "survived")}
    judged, other = len(ends["killed"]) + len(ends["survived"]), len(rows) - sum(map(len, ends.values()))
    text = [f"  {line(row)}" for row in sorted(ends["survived"], key=lambda row: (row["file"], row["line"]))]
    broken = {row["file"]: row["said"] for row in journal.rows.values() if row.get("said")}
    passed = {row["file"] for row in journal.rows.values() if "said" in row and row["end"] == "passed"}
    text += [
        f"  the tests of {file} fail as it is: {' '.join(broken[file])}" for file in sorted(broken.keys() - passed)
    ]
    share = f"{len(ends['killed']) / judged:.0%}" if judged else "none"
    text.append(f"{len(ends['killed'])} of {judged} mutants killed: {share}; {other} whose tests fail without a change")
    return "\n".join(text)


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    old, new = (" ".join(row[k].split())[:60] for k in ("old", "new"))
    return f"{row['end']:9}{row['file']}:{row['line']} {row['operator']}: {old!r} -> {new!r}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50, help="how many of the sample (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides the sample")
    parser.add_argument("--under", default="utils", help="a folder or a file of it")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no other mutant after so long")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "mutants.jsonl", help="(default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="run what nothing killed once more")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--slow", action="store_true", help="with the tests marked slow")
    chosen = parser.parse_args(arguments)
    mutants, journal = sample(root, chosen.seed, chosen.under)[: chosen.count], Journal(chosen.journal)
    if not chosen.report:
        os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        for name in HEAVY:
            __import__(name)
        options = [] if chosen.slow else ["-m", "not slow"]
        for row in judge(mutants, journal, root=root, seconds=chosen.seconds, options=options, again=chosen.again):
            print(f"{line(row)} ({row['seconds']:.0f} s)", flush=True)
    print(summary(mutants, journal))
    return 0


if __name__ == "__main__":
    sys.exit(main())
