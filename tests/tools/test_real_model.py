"""The experiments on a real model: what the table says of rows that are known, and that every kind of job runs."""

import json
import math
import subprocess
import sys

import pytest

from tools.ensemble import Ensemble
from tools.real_model import general
from tools.real_model import record as recording
from tools.real_model.findings import FINDINGS, Finding, at_best, at_equal_accuracy, table, verdict
from tools.real_model.jobs import jobs_of, run_job
from tools.real_model.page import PAGE, page, side
from tools.real_model.plan import PLANS, SECTIONS, calibrated
from tools.sweep_rank import FULL
from utils.evaluate.metrics import complete
from utils.models import load_base, load_tokenizer

ABOVE = Finding("a", "08", "is above 0.1", "points", 0.1, True, lambda rows: {})
BELOW = ABOVE._replace(above=False)


@pytest.mark.parametrize(
    ("finding", "values", "tiny", "said"),
    [
        (ABOVE, [0.5, 0.6, 0.55], [], "holds"),
        (ABOVE, [0.0, 0.01, -0.01], [], "doesn't"),
        (ABOVE, [0.0, 0.6, 0.1], [], "open"),
        (ABOVE, [0.5], [], "not measured"),
        (ABOVE, [0.2, 0.21, 0.19], [0.5, 0.6, 0.55], "holds, weaker"),
        (ABOVE, [0.4, 0.41, 0.39], [0.5, 0.6, 0.55], "holds"),
        (BELOW, [0.0, 0.01, -0.01], [], "holds"),
        (BELOW, [0.5, 0.6, 0.55], [], "doesn't"),
    ],
)
def test_a_finding_holds_where_the_whole_interval_is_on_its_side(finding, values, tiny, said):
    assert verdict(finding, values, tiny) == said


def test_the_rate_is_chosen_on_dev_and_a_run_that_diverged_is_the_worst():
    rows = [{"lr": lr, "seed": s, "dev": dev, "test": test}
            for lr, dev, test in ((0.1, 0.5, 0.9), (0.2, 0.8, 0.1), (0.4, None, 1.0)) for s in (0, 1)]  # fmt: skip
    assert at_best(rows) == {0: 0.1, 1: 0.1}
    assert at_best([r | {"dev": None} for r in rows if r["lr"] == 0.4]) == {0: 1.0, 1: 1.0}
    assert at_best([]) == {}


def _remedy(remedy, lr, dev, general_dev, general_test, knob=0.0):
    return [{"section": "remedies", "task": "style", "targets": "all-linear", "remedy": remedy, "knob": knob, "lr": lr,
             "seed": s, "dev": dev, "general_dev": general_dev, "general": general_test} for s in (0, 1)]  # fmt: skip


def test_remedies_are_compared_at_nine_tenths_of_the_best_accuracy():
    rows = [*_remedy("rate", 1e-3, 1.0, 9.0, 90.0), *_remedy("rate", 1e-4, 0.5, 2.0, 20.0),
            *_remedy("kl", 1e-3, 0.95, 3.0, 30.0), *_remedy("kl", 1e-3, 0.91, 2.5, 25.0, knob=2.0)]  # fmt: skip
    assert at_equal_accuracy(rows, "general", "rate", "lora", "style") == {0: 90.0, 1: 90.0}
    assert at_equal_accuracy(rows, "general", "kl", "lora", "style") == {0: 25.0, 1: 25.0}
    assert at_equal_accuracy(rows, "general", "replay", "lora", "style") == {}
    (kl,) = [f for f in FINDINGS if f.key == "kl style"]
    assert kl.effect(rows) == pytest.approx({s: math.log(25 / 90) for s in (0, 1)})


def test_full_fine_tuning_is_told_from_lora_and_no_finding_is_there_twice():
    rows = [{"section": "ranks", "targets": t, "r": r, "lr": lr, "seed": 0, "dev_loss": loss, "dev": 0, "test": 0}
            for t, r in (("all-linear", 8), (FULL, None)) for lr, loss in ((1e-4, 2.0), (8e-4, 1.0))]  # fmt: skip
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
    rows[2]["dev_loss"], rows[3]["dev_loss"] = 1.0, 2.0
    (rate,) = [f for f in FINDINGS if f.key == "method rate"]
    assert rate.effect(rows) == {0: pytest.approx(3.0)}
    assert len({f.key for f in FINDINGS}) == len(FINDINGS)


def test_the_page_has_a_row_for_each_finding_with_mean_interval_and_seeds():
    found = {"seeds": [0, 1, 2], "mean": 0.5, "low": 0.25, "high": 0.75, "verdict": "holds"}
    other = found | {"mean": 20_000, "low": -1_234, "high": 41_234, "verdict": "doesn't"}
    entry = {"chapter": "08", "says": "Small is good", "unit": "bits", "bound": 20000, "above": False}
    record = {"findings": [entry | {"tiny": found, "small": other}], "date": "d", "hardware": "h", "torch": "t",
              "tool": "x", "tables": {"ranks": {"small": [
                  {"targets": "q,v", "r": 1, "mean": 0.5, "low": 0.4, "high": 0.6, "seeds": 3},
                  {"targets": "q,v", "r": 16, "mean": 0.75, "seeds": 1}, {"targets": "full", "r": None, "mean": 1.0}]},
                  "tasks": {"tiny": [{"task": "sums", "steps": 9, "prompts": 50, "base": 0.0, "lora": {"mean": 0.04,
                  "low": -0.001, "high": 0.08}, "full": {}}]}, "capacity": {"tiny": [], "small": []}}}  # fmt: skip
    text = page(record)
    row = "| [08](08_loraconfig.md) | Small is good | bits | below 20,000 | 0.50 (0.25 to 0.75; 3) | "
    assert row + "20,000 (-1,234 to 41,234; 3) | **doesn't** |" in text
    assert "| SmolLM2 | q,v | 50 (40 to 60) | 75 |  |" in text and "| SmolLM2 | full |  |  | 100 |" in text
    assert "| model | targets | r = 1 | r = 16 | - |" in text
    assert "| tiny | sums | 9 | 50 | 0 | 4 (0 to 8) | - |" in text and "Capacity" not in text
    assert "Of 1 findings 0 hold on SmolLM2, 0 weaker, 0 are open, and 1 don't.\n" in text
    later = {"findings": [*record["findings"], entry | {"tiny": found, "small": {"verdict": "not measured"}}]}
    assert "and 1 don't. 1 more have not been measured on it." in page(record | later)
    assert side({"seeds": [], "values": []}) == "not measured"


@pytest.mark.skipif(not recording.OUT.exists(), reason="the record is made on a GPU")
def test_the_page_is_what_the_record_gives():
    assert PAGE.read_text(encoding="utf-8") == page(json.loads(recording.OUT.read_text(encoding="utf-8")))


@pytest.mark.skipif(not recording.OUT.exists(), reason="the record is made on a GPU")
def test_what_chapters_6_8_and_11_say_of_smollm2_is_in_the_record():
    record = json.loads(recording.OUT.read_text(encoding="utf-8"))
    tables = {name: found["small"] for name, found in record["tables"].items()}
    (rule,) = [f for f in record["findings"] if f["key"] == "rule fixed"]
    assert rule["small"]["values"] == [0.0, 0.0, 0.0]
    ways = {
        (r["how"], r["weight"]): [r[task]["mean"] for task in ("style", "translation")] for r in tables["combining"]
    }
    alone = [ways["style alone", 1.0][0], ways["translation alone", 1.0][1]]
    assert [round(100 * value) for value in alone] == [100, 99]
    assert all(min(both) < 0.5 for way, both in ways.items() if "alone" not in way[0])
    at = {(r["form"], r["task"]): r for r in tables["formats"]}
    for task in ("style", "translation"):
        assert at["nf4", task]["mean"] > at["bf16", task]["mean"]
        assert 0.2 < at["nf4", task]["first_choice_differs"] < 0.3
    assert {row["seeds"] for row in [*tables["ranks"], *tables["formats"]]} == {3}


def test_nothing_measured_is_said():
    assert {entry[m]["verdict"] for entry in table([]) for m in ("tiny", "small")} == {"not measured"}


@pytest.mark.parametrize("model", PLANS)
def test_every_job_has_a_file_of_its_own_and_trains_what_there_is(model, tmp_path):
    jobs = jobs_of(model, list(SECTIONS), tmp_path, "cpu", trial=True)
    assert len({job["file"] for job in jobs}) == len(jobs)
    assert {job["section"] for job in jobs} == set(SECTIONS)


def test_the_pilot_says_how_many_steps_a_task_is_given():
    rows = [
        {"task": "style", "steps": steps, "dev": dev} for steps, dev in ((20, 0.1), (40, 0.7), (40, 0.3), (80, 1.0))
    ]
    plan = calibrated(PLANS["small"], [*rows, {"task": "style", "steps": 60, "dev": None}])
    assert plan.short == PLANS["small"].short | {"style": 40}


def test_a_pilot_whose_runs_have_all_learned_nothing_chooses_no_length():
    """It once took the shortest of three, and whole sections of the tiny model stood at 0% of translation."""
    rows = [{"task": "translation", "steps": steps, "dev": dev} for steps in (20, 40, 80) for dev in (0.0, 0.1)]
    assert calibrated(PLANS["tiny"], rows).short == PLANS["tiny"].short


def test_what_a_stack_says_is_what_its_model_says_alone():
    model, tokenizer = load_base()
    prompts = ["Say it like a pirate: Zoe went to the lake.", "Tell me a story."]
    alone = complete(model, tokenizer, prompts, max_new_tokens=8)
    model.requires_grad_(True)
    stack = Ensemble(model, tokenizer, [dict(model.named_parameters())] * 2, [0.0] * 2, [0, 0], device="cpu")
    assert general.spoken(stack, prompts, 8) == [alone, alone]


WANTED = ("base", "sweep", "kl", "form", "update", "combine", "overfit", "variant", "strings")


def test_a_trial_of_the_tiny_model_measures_every_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "tiny")
    jobs = jobs_of("tiny", list(SECTIONS), tmp_path, "cpu", trial=True)
    first = {job.get("remedy") or job["kind"]: job for job in reversed(jobs)}
    for kind in WANTED:
        rows = run_job(first[kind])
        assert rows and all(row["model"] == "tiny" for row in rows), kind
        assert json.loads(open(first[kind]["file"], encoding="utf-8").read()) == rows
    about = {"hardware": "CPU", "date": "2026-11-29", "torch": "2"}
    (tmp_path / recording.ABOUT).write_text(json.dumps(about), encoding="utf-8")
    recording.record(tmp_path, tmp_path / "record" / "real_model.json", tmp_path / "page.md")
    assert "| [08](08_loraconfig.md) | Rank 16 beats rank 1" in (tmp_path / "page.md").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "record" / "real_model.json").read_text(encoding="utf-8"))
    assert len(record["findings"]) == len(FINDINGS) and record["hardware"] == "CPU"


def test_the_command_trains_in_processes_of_its_own(tmp_path):
    """The jobs were lost, and the command hung, while what runs one was a function of the package's `__main__`."""
    call = [
        sys.executable,
        "-m",
        "tools.real_model",
        "--model",
        "tiny",
        "--trial",
        "--workers",
        "1",
        "--work",
        tmp_path,
    ]
    told = subprocess.run([*call, "capacity"], capture_output=True, text=True, timeout=240, check=True)
    assert "1 of 1 jobs are there" in told.stdout and list(tmp_path.glob("tiny-capacity-*.json"))


def test_a_job_that_is_done_is_not_trained_again(tmp_path):
    (job,) = [j for j in jobs_of("tiny", ["combining"], tmp_path, "cpu", trial=True)]
    (tmp_path / "tiny-combining-style_translation.json").write_text('[{"kept": 1}]', encoding="utf-8")
    assert run_job(job) == [{"kept": 1}]


def test_a_job_that_fails_says_so_and_leaves_no_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "tiny")
    (job,) = jobs_of("tiny", ["combining"], tmp_path, "cpu", trial=True)
    assert run_job(job | {"tasks": ["poems", "style"]}) == []
    assert "FAILED" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_the_questions_have_one_right_word_each_and_replay_asks_none_of_them():
    import re

    asked = [question for question, _ in general.QUESTIONS]
    assert len(asked) == len(set(asked)) == 50 and not set(asked) & set(general.replay_prompts(180))
    for question, word in general.QUESTIONS[:20]:
        assert re.search(rf"\b({word})\b", f"It is {word}.") and not re.search(rf"\b({word})\b", question)


def test_general_windows_are_whole_and_never_too_many():
    tokenizer = load_tokenizer()
    rows = general.general_rows(tokenizer, 6, 64)
    assert rows.shape == (6, 64) and len({tuple(row.tolist()) for row in rows}) == 6
    with pytest.raises(ValueError, match="have .* windows of 64 tokens, not 1000000"):
        general.general_rows(tokenizer, 10**6, 64)
