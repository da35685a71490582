"""The experiments on a real model: what the table says of rows that are known, and that every kind of job runs."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tools.ensemble import Ensemble
from tools.real_model import general
from tools.real_model import record as recording
from tools.real_model.cells import number, percent, side
from tools.real_model.choosing import Measured, at_best, at_equal_accuracy, best_rate, less
from tools.real_model.findings import EDGE, FINDINGS, LOG_PERPLEXITY, NOT_REACHED, Finding, table, verdict
from tools.real_model.jobs import jobs_of, run_job
from tools.real_model.page import PAGE, fared, page
from tools.real_model.plan import PLANS, SECTIONS, calibrated
from tools.sweep_rank import FULL
from utils.evaluate.metrics import complete
from utils.evaluate.seeds import interval
from utils.models import load_base, load_tokenizer
from utils.train.loop import WARMUP_STEPS

ABOVE = Finding("a", "08", "is above 0.1", "points", 0.1, True, lambda rows: Measured({}))
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
    assert at_best(rows) == Measured({0: 0.1, 1: 0.1})
    assert at_best([r | {"dev": None} for r in rows if r["lr"] == 0.4]).by_seed == {0: 1.0, 1: 1.0}
    assert at_best([]) == Measured({})


HELD, BEATEN, TOWARDS, AWAY = [0.5, 0.6, 0.55], [0.0, 0.01, -0.01], {"rises": True}, {"falls": True}


@pytest.mark.parametrize(
    ("finding", "values", "may", "said"),
    [
        (ABOVE, HELD, AWAY, EDGE),
        (ABOVE, HELD, TOWARDS, "holds"),
        (ABOVE, BEATEN, TOWARDS, EDGE),
        (ABOVE, BEATEN, AWAY, "doesn't"),
        (ABOVE, [0.0, 0.6, 0.1], AWAY, "open"),
        (BELOW, BEATEN, TOWARDS, EDGE),
        (BELOW, BEATEN, AWAY, "holds"),
        (BELOW, HELD, AWAY, EDGE),
    ],
)
def test_a_finding_is_open_where_a_wider_grid_could_turn_it(finding, values, may, said):
    """Rank 16 was said to beat rank 1, whose best rate was the highest of three: its loss still fell at the next."""
    assert verdict(finding, values, **may) == said


def _rated(dev_by_rate, **more):
    return [more | {"lr": lr, "seed": s, "dev": dev, "test": dev, "dev_loss": 1 - dev}
            for lr, dev in dev_by_rate.items() for s in (0, 1, 2)]  # fmt: skip


def test_a_best_rate_at_the_edge_of_the_grid_is_a_bound():
    inside, last, first, full_marks = ({0.1: 0.5, 0.2: 0.8, 0.4: 0.6}, {0.1: 0.5, 0.2: 0.8}, {0.1: 0.8, 0.2: 0.5},
                                       {0.1: 0.5, 0.2: 1.0})  # fmt: skip
    may = [at_best(_rated(grid)) for grid in (inside, last, first, full_marks)]
    assert [found.rises for found in may] == [False, True, True, False] and not any(found.falls for found in may)
    loss = at_best(_rated(last), "dev_loss", "dev_loss", lowest=True)
    assert loss.falls and not loss.rises
    assert [best_rate(_rated(grid))[1:3] for grid in (inside, last, first)] == [(0, 0), (1, 0), (0, 1)]
    assert less(may[0], may[1])[1:3] == (False, True), "what is subtracted may rise: the difference may fall"
    assert less(may[1], may[0])[1:3] == (True, False)


def test_the_finding_of_two_ranks_is_open_where_the_lower_one_wants_a_higher_rate():
    lower = _rated({2e-3: 0.2, 4e-3: 0.3, 8e-3: 0.5}, section="ranks", targets="all-linear", r=1, model="small")
    higher = _rated({2e-3: 0.6, 4e-3: 0.9, 8e-3: 0.8}, section="ranks", targets="all-linear", r=16, model="small")
    wider = _rated({1.6e-2: 0.4}, section="ranks", targets="all-linear", r=1, model="small")
    for rows, said in (([*lower, *higher], EDGE), ([*lower, *wider, *higher], "holds")):
        (found,) = [entry["small"] for entry in table(rows) if entry["key"] == "rank"]
        assert (found["verdict"], found["means"]) == (said, "90% against 50%")


def test_the_best_way_to_combine_stands_for_all_five():
    rows = [
        {
            "section": "combining",
            "model": "small",
            "how": how,
            "weight": weight,
            "seed": s,
            "style": style + s / 99,
            "translation": 0.5,
        }
        for s in (0, 1)
        for how, weight, style in (("cat", 1, 0.2), ("ties", 1, 0.9))
    ]
    rows = [row | {"weight": float(row["weight"])} for row in rows]  # fmt: skip
    (found,) = [entry["small"] for entry in table(rows) if entry["key"] == "combined"]
    assert found["values"] == [0.7, 0.7051] and found["means"] == "best: ties at weights 1, style 91%, translation 50%"
    assert sum(f.chapter == "11" for f in FINDINGS) == 1


def _remedy(remedy, lr, dev, general_dev, general_test, knob=0.0):
    return [{"section": "remedies", "task": "style", "targets": "all-linear", "remedy": remedy, "knob": knob, "lr": lr,
             "seed": s, "dev": dev, "general_dev": general_dev, "general": general_test} for s in (0, 1)]  # fmt: skip


def test_remedies_are_compared_at_nine_tenths_of_the_best_accuracy():
    rows = [*_remedy("rate", 1e-3, 1.0, 9.0, 90.0), *_remedy("rate", 1e-4, 0.5, 2.0, 20.0),
            *_remedy("kl", 1e-3, 0.95, 3.0, 30.0), *_remedy("kl", 1e-3, 0.91, 2.5, 25.0, knob=2.0)]  # fmt: skip
    assert at_equal_accuracy(rows, "general", "rate", "lora", "style").by_seed == {0: 90.0, 1: 90.0}
    kl = at_equal_accuracy(rows, "general", "kl", "lora", "style")
    assert kl.by_seed == {0: 25.0, 1: 25.0} and kl.falls, "the strongest penalty tried: a stronger one may keep more"
    assert at_equal_accuracy(rows, "general", "replay", "lora", "style") == Measured({})
    (kl,) = [f for f in FINDINGS if f.key == "kl style"]
    assert kl.effect(rows).by_seed == pytest.approx({s: math.log(25 / 90) for s in (0, 1)})
    assert kl.effect(rows).means == "perplexity 25.00 against 90.00"


def test_two_methods_are_compared_at_one_accuracy():
    """Each was held to nine tenths of its own best: LoRA at 60% beside full fine-tuning at 100%."""
    rows = [*_remedy("rate", 1e-4, 0.6, 1.0, 10.0), *_remedy("rate", 1e-3, 0.95, 5.0, 50.0)]
    alone = [row for row in rows if row["lr"] == 1e-4]
    whole = [row | {"targets": FULL} for row in _remedy("rate", 1e-5, 1.0, 2.0, 20.0)]
    assert at_equal_accuracy([*alone, *whole], "general", "rate", "lora", "style").by_seed == {0: 10.0, 1: 10.0}
    assert at_equal_accuracy([*alone, *whole], "general", "rate", "lora", "style", both=True).by_seed == {}
    (found,) = [f.effect([*rows, *whole]) for f in FINDINGS if f.key == "forgets style"]
    assert found.means == "perplexity 50.00 against 20.00"


def test_an_effect_on_what_was_forgotten_is_never_called_weaker():
    """KL undid all that SmolLM2 had forgotten and was called weaker: the tiny model had forgotten more."""
    finding = BELOW._replace(unit=LOG_PERPLEXITY)
    assert verdict(finding, [-0.2, -0.21, -0.19], [-0.9, -0.91, -0.89]) == "holds"


def test_the_windows_that_a_penalty_sees_are_none_of_those_that_are_reported():
    """Of 48 and of 148 drawn with one seed the first 48 weren't the same: three reported windows were shown."""
    tokenizer = load_tokenizer()
    few, many = (general.general_rows(tokenizer, 48, 64, more=more).tolist() for more in (0, 100))
    assert many[:48] == few and len(many) == 148
    assert not {tuple(row) for row in many[48:]} & {tuple(row) for row in few}
    assert len({tuple(row) for row in many}) == 148


def test_full_fine_tuning_is_told_from_lora_and_no_finding_is_there_twice():
    rows = [{"section": "ranks", "targets": t, "r": r, "lr": lr, "seed": 0, "dev_loss": loss, "dev": 0, "test": 0}
            for t, r in (("all-linear", 8), (FULL, None)) for lr, loss in ((1e-4, 2.0), (8e-4, 1.0))]  # fmt: skip
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
    rows[2]["dev_loss"], rows[3]["dev_loss"] = 1.0, 2.0
    (rate,) = [f for f in FINDINGS if f.key == "method rate"]
    assert rate.effect(rows).by_seed == {0: pytest.approx(3.0)}
    assert len({f.key for f in FINDINGS}) == len(FINDINGS)


FOUND = {"seeds": [0, 1, 2], "mean": 0.5, "low": 0.25, "high": 0.75, "verdict": "holds", "means": "9 of 10"}
ENTRY = {"key": "k", "chapter": "08", "says": "Small is good", "unit": "bits", "bound": 20000, "above": False}
HEAD = {"date": "d", "hardware": "h", "torch": "t", "tool": "x", "tables": {}}


def _paged(*pairs, tables=None):
    """The page of findings with these verdicts of the tiny model and of SmolLM2."""
    sides = [[FOUND | {"verdict": v} if v != "not measured" else {"seeds": [], "verdict": v} for v in p] for p in pairs]
    found = [ENTRY | {"says": f"{tiny} and {small}"} | dict(zip(("tiny", "small"), both, strict=True))
             for (tiny, small), both in zip(pairs, sides, strict=True)]  # fmt: skip
    return page(HEAD | {"findings": found, "tables": tables or {}})


def test_the_page_has_both_models_verdicts_numbers_and_what_they_come_to():
    other = FOUND | {"mean": 20_000, "low": -1_234, "high": 41_234, "verdict": "doesn't", "means": ""}
    record = HEAD | {"findings": [ENTRY | {"tiny": FOUND, "small": other}], "tables": {"ranks": {"small": [
                  {"targets": "q,v", "r": 1, "mean": 0.5, "low": 0.4, "high": 0.6, "seeds": 3, "may_rise": True},
                  {"targets": "q,v", "r": 16, "mean": 0.75, "seeds": 1}, {"targets": "full", "r": None, "mean": 1.0}]},
                  "tasks": {"tiny": [{"task": "sums", "steps": 9, "prompts": 50, "base": 0.0, "lora": {"mean": 0.04,
                  "low": -0.001, "high": 0.08}, "full": {}}]}, "capacity": {"tiny": [], "small": []}}}  # fmt: skip
    text = page(record)
    row = "| [08](08_loraconfig.md) | Small is good | below 20,000 bits | **doesn't**: 20,000 (0 to 41,234; 3) | "
    assert row + "holds: 0.50 (0.25 to 0.75; 3); 9 of 10 |" in text
    assert "| SmolLM2 | q,v | ≥ 50 (40 to 60) | 75 |  |" in text and "| SmolLM2 | full |  |  | 100 |" in text
    assert "| model | targets | r = 1 | r = 16 | - |" in text
    assert "| tiny | sums | 9 | 50 | 0 | 4 (0 to 8) | - |" in text and "Capacity" not in text
    assert "Of 1 that were tried on SmolLM2, 0 hold, 0 are open and 1 doesn't hold.\n" in text


def test_the_page_sorts_findings_by_how_they_fared_on_both():
    text = _paged(("holds", "holds"), ("open", "holds, weaker"), ("doesn't", "not measured"), ("open", EDGE),
                  ("not measured", "doesn't"), ("not measured", "not measured"), ("holds", "doesn't"))  # fmt: skip
    assert "Of 5 that were tried on SmolLM2, 2 hold (1 with a smaller effect), 1 are open (1 because" in text
    assert "| SmolLM2: doesn't | 1 | 0 | 0 | 1 |" in text and "| SmolLM2: not measured | 0 | 0 | 1 | 1 |" in text
    below = {part.split("\n", 1)[0]: part for part in text.split("\n## ")[1:]}
    assert "| holds and holds |" in below["Holds on both"]
    assert "| open and holds, weaker |" in below["Holds on SmolLM2, and not shown on the tiny model"]
    assert below["Doesn't hold on SmolLM2"].count("**doesn't**") == 2
    assert f"| open and {EDGE} |" in below["Open on SmolLM2"]
    folded = below["Not measured on SmolLM2"].split("<details>")
    assert "| doesn't and not measured |" in folded[1] and "- [08](08_loraconfig.md): not measured and" in folded[2]
    assert "**Refuted by the tiny model itself**: doesn't and not measured (chapter 08)." in text
    assert "hypotheses, not findings</summary>\n\nopen and holds, weaker; open and " in text
    alone = _paged(("holds", "holds"))
    assert "Open on" not in alone and "Not measured on" not in alone and "hypotheses" not in alone


def test_a_number_is_written_with_two_significant_digits_and_within_what_it_can_be():
    assert side({"seeds": [], "values": []}) == "not measured"
    close = {"mean": 0.0126, "low": 0.0085, "high": 0.0166, "seeds": [0, 1, 2]}
    assert side(close, "nats a token") == "0.013 (0.009 to 0.017; 3)", "0.01 (0.01 to 0.02) said nothing of 0.01"
    assert side({"mean": -0.1283, "low": -0.4155, "high": 0.1588, "seeds": [0, 1, 2]}, "exact match") == (
        "-13 (-42 to 16; 3)"
    )
    assert percent({"mean": 0.95, "low": 0.87, "high": 1.03}) == "95 (87 to 100)"
    assert number({"mean": 2.667, "low": -1.1, "high": 6.4, "may_fall": True}) == "≤ 2.67 (0.00 to 6.40)"
    assert number(0.00002) == "<0.0001" and number(94.667) == "94.7" and number(0.0) == "0.00"


def test_what_holds_by_little_is_marked():
    close = FOUND | {"mean": 0.5, "low": 0.101, "high": 0.9}
    above = ENTRY | {"unit": "points", "bound": 0.1, "above": True}
    assert fared(above | {"small": close}, "small").startswith("holds, just: ")
    assert fared(above | {"small": close | {"low": 0.2}}, "small").startswith("holds: ")
    assert fared(above | {"small": close | {"verdict": "open"}}, "small").startswith("open: ")


def test_an_interval_of_no_width_says_why():
    none = FOUND | {"mean": 0.0, "low": 0.0, "high": 0.0, "means": ""}
    assert fared(ENTRY | {"unit": "powers of two", "small": none}, "small").endswith(
        "grid of factors of 2 on both sides"
    )
    assert fared(ENTRY | {"small": none}, "small").endswith("every seed has the same value on both sides")


@pytest.mark.skipif(not recording.OUT.exists(), reason="the record is made on a GPU")
def test_the_page_is_what_the_record_gives():
    assert PAGE.read_text(encoding="utf-8") == page(json.loads(recording.OUT.read_text(encoding="utf-8")))


@pytest.mark.skipif(not recording.OUT.exists(), reason="the record is made on a GPU")
def test_what_chapters_6_8_9_and_11_say_of_smollm2_is_in_the_record():
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
        assert round(100 * (at["nf4", task]["mean"] - at["bf16", task]["mean"])) == 0
        assert 0.2 < at["nf4", task]["first_choice_differs"] < 0.3
    assert {row["seeds"] for row in tables["ranks"]} == {3} and {row["seeds"] for row in tables["formats"]} == {5}
    equal = {
        row["targets"]: row
        for row in tables["ranks"]
        if (row["targets"], row["r"]) in (("q,v", 42), ("attention", 21), ("MLP", 13), ("all-linear", 8))
    }
    assert not [name for name, row in equal.items() if row.get("may_rise")], "no rate at the edge"
    said = {"all-linear": 84, "MLP": 88, "attention": 58, "q,v": 43}
    assert {name: round(100 * row["mean"]) for name, row in equal.items()} == said, "chapter 8 says it"
    found = {f["key"]: f["small"] for f in record["findings"]}
    verdicts = {key: entry["verdict"] for key, entry in found.items()}
    assert (verdicts["targets"], verdicts["attention"], verdicts["rank"]) == ("holds, weaker", "holds", "open")
    losses: dict[int, dict[float, float]] = {}
    for row in tables["rates"]:
        if row.get("lora_alpha") == 32:
            losses.setdefault(row["r"], {})[row["lr"]] = row["mean"]
    assert set(losses) == {1, 4, 16, 64}
    assert all(mine[0.004] - min(mine.values()) < 0.003 for mine in losses.values()), "chapter 8 on alpha = 32"
    assert [round(losses[r][0.004], 2) for r in (1, 16)] == [0.07, 0.09], "and on the rank"
    assert found["rank"]["means"] == "88% against 82%", "chapter 8 on the rank, by answers"
    assert [round(100 * found[f"nf4 {task}"]["low"]) for task in ("translation", "style")] == [-6, -3]
    assert (verdicts["nf4 style"], verdicts["nf4 translation"], verdicts["rule 2r"]) == ("holds", "open", "open")
    assert [round(100 * found["attention"][end]) for end in ("low", "high")] == [13, 48]
    shown = [round(100 * at[form, task]["mean"]) for form in ("nf4", "bf16") for task in ("style", "translation")]
    assert shown == [96, 91, 96, 91], "chapter 9"


@pytest.mark.skipif(not recording.OUT.exists(), reason="the record is made on a GPU")
def test_what_chapters_2_and_17_say_of_smollm2s_updates_is_in_the_record():
    both = json.loads(recording.OUT.read_text(encoding="utf-8"))["tables"]["updates"]
    tiny = {(r["task"], r["cut_to"]): r["test"]["mean"] for r in both["tiny"] if r["method"] == "full"}
    assert [round(100 * tiny[task, r]) for r in (8, 16) for task in ("style", "translation")] == [35, 40, 92, 90]
    assert min(tiny[task, 64] for task in ("style", "translation")) >= 0.98, "the figure's alternative text"
    plan = PLANS["tiny"]
    assert ([plan.steps[task] for task in ("style", "translation")], len(plan.full_rates[1:])) == ([200, 400], 4)
    rows = both["small"]
    full = {(r["task"], r["cut_to"]): r for r in rows if r["method"] == "full"}
    assert [full[task, 8]["test"]["seeds"] for task in ("style", "translation")] == [3, 5]
    kept = {
        task: [round(100 * full[task, r]["test"]["mean"]) for r in (8, 16, None)] for task in ("style", "translation")
    }
    assert kept == {"style": [77, 97, 100], "translation": [51, 71, 100]}
    assert round(100 * full["translation", 64]["test"]["mean"]) == 98
    readme = (recording.OUT.parents[2] / "README.md").read_text(encoding="utf-8")
    assert "the cut keeps 51 and 77% of two tasks" in readme
    assert [round(100 * full[task, 8]["energy"]["mean"]) for task in ("style", "translation")] == [51, 39]
    whole = [r for r in rows if r["cut_to"] is None]
    assert len(whole) == 4 and all(r["intruders"]["mean"] == r["intruders"]["high"] == 0 for r in whole)
    assert [round(100 * r["relative_size"]["mean"], 1) for r in whole if r["method"] == "lora"] == [1.4, 1.9]


def test_what_chapters_8_9_and_16_say_of_smollm2_in_a_sentence_is_in_the_record():
    record = json.loads(recording.OUT.read_text(encoding="utf-8"))
    tables = {name: found["small"] for name, found in record["tables"].items()}
    found = {f["key"]: f["small"] for f in record["findings"]}
    last = tables["overfitting"][-1]
    means = [last[what]["mean"] for what in ("train_loss", "test")]
    assert (last["epochs"], means, last["dev_loss"]["seeds"]) == (32, [0.0004, 0.268], 5)
    assert f"{last['dev_loss']['mean']:.2f}" == "0.51"
    assert round(found["overfits"]["mean"], 3) == 0.010 and round(max(found["overfits"]["values"]), 3) == 0.035
    assert found["overfits"]["verdict"] == "doesn't"
    assert found["merge"]["means"] == "11.3 of 94.7 right answers lost, 2.7 won", "chapter 10"
    assert found["batch"]["means"] == "+0.11 against +0.04" and {row["batch"] for row in tables["batches"]} == {8, 128}
    assert [found["batch"][end] for end in ("low", "high")] == [0.0033, 0.1293], "chapters 8 and 19"
    assert {row["method"]: row.get("may_fall") for row in tables["batches"] if row["batch"] == 128} == {
        "lora": None, "full": True,
    }  # fmt: skip
    (large,) = {row["steps"] for row in tables["batches"] if row["batch"] == 128}
    assert (large, WARMUP_STEPS) == (16, 10), "chapters 8 and 19"
    (filled,) = tables["capacity"]
    jobs = json.loads((recording.JOBS / "small-capacity-512.json").read_text(encoding="utf-8"))
    best = [max((row for row in jobs if row["seed"] == s), key=lambda row: row["exact"]) for s in (0, 1)]
    assert all(abs(row["exact"] - 0.75) < 0.03 for row in best) and (filled["r"], filled["strings"]) == (1, 512)
    learned = {lr: sorted(round(100 * row["exact"]) for row in jobs if row["lr"] == lr) for lr in (0.002, 0.004, 0.008)}
    assert learned[0.004] == [62, 75] and learned[0.002][0] == learned[0.008][0] == 0, "chapter 8"


def test_what_chapter_16_says_of_smollm2s_variants_is_in_the_record():
    """Ten comparisons: of the two whose interval leaves out 0 the smallest p, times ten, is above 0.05."""
    record = json.loads(recording.OUT.read_text(encoding="utf-8"))
    found = {f["key"]: f["small"] for f in record["findings"] if f["chapter"] == "16"}
    assert len(found) == 10 and {len(entry["values"]) for entry in found.values()} == {5}
    apart = {key: entry for key, entry in found.items() if entry["low"] > 0 or entry["high"] < 0}
    spans = {key: [round(100 * entry[end]) for end in ("mean", "low", "high")] for key, entry in apart.items()}
    assert spans == {"PiSSA translation": [11, 1, 21], "VeRA r=256 translation": [-7, -14, 0]}
    for entry in apart.values():
        t = abs(statistics.mean(entry["values"])) / (statistics.stdev(entry["values"]) / math.sqrt(5))
        assert t < 5.598, "Student's t with four degrees of freedom at p = 0.05 / 10"
    assert len(record["tables"]["variants"]["small"]) == 12
    for task, steps in (("translation", 80), ("style", 20)):
        rows = json.loads((recording.JOBS / f"small-variants-PiSSA-{task}.json").read_text(encoding="utf-8"))
        assert {row["steps"] for row in rows} == {steps} and len({row["lr"] for row in rows}) == 6
    assert PLANS["small"].batch == 8


def test_what_chapter_17_says_of_smollm2s_remedies_is_in_the_record():
    record = json.loads(recording.OUT.read_text(encoding="utf-8"))
    every = record["tables"]["forgetting"]["small"]
    (base,) = [r for r in every if r["task"] == "the base"]
    assert f"{base['general']['mean']:.1f} {base['questions']['mean']:.0%}" == "17.0 46%"
    at = {(r["task"], r["remedy"]): r for r in every if r.get("method") == "lora"}
    told = {key: f"{r['general']['mean']:.1f} {r['questions']['mean']:.0%}" for key, r in at.items()}
    style = {name: said for (task, name), said in told.items() if task == "style"}
    assert style == {
        "none": "21.7 1%", "rate": "18.7 27%", "average of steps": "21.5 1%", "scale": "18.3 29%", "kl": "17.0 17%",
        "replay": "20.6 37%", "weight decay": "18.5 27%", "kl on answers": "17.1 45%",
    }  # fmt: skip
    spans = {key: [round(100 * r["questions"][end]) for end in ("low", "high")] for key, r in at.items()}
    assert spans["style", "replay"] == [34, 40] and spans["style", "kl on answers"] == [42, 48]
    assert spans["style", "kl"] == [-19, 53], "a share isn't below 0"
    assert spans["translation", "none"] == [12, 48] and told["translation", "none"] == "22.6 30%"
    decayed = [told["translation", name].split()[0] for name in ("kl", "weight decay", "rate")]
    assert decayed == ["17.0", "18.4", "19.5"]
    replayed = at["translation", "replay"]["general"]
    assert [round(replayed[end]) for end in ("mean", "low", "high")] == [40, 15, 66]
    verdicts = {f["key"]: f["small"]["verdict"] for f in record["findings"]}
    assert verdicts["kl on answers style"] == verdicts["kl translation"] == "holds"
    assert (verdicts["replay translation"], verdicts["forgets style"]) == ("open", "doesn't")
    full = {r["task"]: r["general"]["mean"] for r in every if (r.get("method"), r.get("remedy")) == ("full", "rate")}
    assert {task: round(mean, 1) for task, mean in full.items()} == {"style": 17.1, "translation": 17.4}
    assert verdicts["forgets translation"] == "open"
    (both,) = [f["small"]["values"] for f in record["findings"] if f["key"] == "forgets translation"]
    assert len(both) == 3 and min(both) > 0, "in each seed"
    asked = {r["method"]: r["questions"]["mean"] for r in every if (r["task"], r.get("remedy")) == ("style", "rate")}
    assert {name: round(100 * mean) for name, mean in asked.items()} == {"lora": 27, "full": 27}
    rated = [r for r in every if (r["task"], r.get("remedy")) == ("translation", "rate")]
    said = {r["method"]: [round(100 * r["questions"][end]) for end in ("mean", "low", "high")] for r in rated}
    assert said == {"lora": [32, 27, 37], "full": [41, 34, 49]}
    assert {r["method"]: round(100 * r["test"]["mean"]) for r in rated} == {"lora": 91, "full": 98}


def _job(name, **wanted):
    rows = json.loads((recording.JOBS / f"small-remedies-{name}.json").read_text(encoding="utf-8"))
    return {row["seed"]: row for row in rows if wanted.items() <= row.items()}


def test_what_chapter_17_says_of_single_settings_is_in_the_runs():
    pages, answers = (_job(f"style-lora-{name}-2", lr=0.0005) for name in ("kl", "kl_on_answers"))
    for runs, asked, right in ((pages, 31, 98), (answers, 43, 94)):
        means = [statistics.mean(row[what] for row in runs.values()) for what in ("questions", "dev")]
        assert [round(100 * mean) for mean in means] == [asked, right]
    low, high = interval([answers[seed]["questions"] - pages[seed]["questions"] for seed in pages])
    assert [round(100 * end) for end in (low, high)] == [2, 22]
    replayed = _job("translation-lora-replay-1", lr=0.004).values()
    plain = _job("translation-lora-rate-0", lr=0.004, remedy="rate").values()
    assert [round(statistics.mean(r["general"] for r in runs), 1) for runs in (replayed, plain)] == [29.0, 22.6]
    decayed = _job("translation-lora-weight_decay-3", lr=0.004).values()
    assert round(statistics.mean(row["test"] for row in decayed), 2) == 0.97 and 3 * 0.004 == pytest.approx(0.012)
    assert not _job("style-lora-weight_decay-3", lr=0.002), "3 x 0.001 is the largest product on style"


@pytest.mark.skipif(not recording.OUT.exists(), reason="the record is made on a GPU")
def test_no_finding_of_the_record_leans_on_a_setting_at_the_edge_of_its_grid():
    for entry in json.loads(recording.OUT.read_text(encoding="utf-8"))["findings"]:
        for found in (entry["tiny"], entry["small"]):
            towards, away = ("may_rise", "may_fall") if entry["above"] else ("may_fall", "may_rise")
            assert not (found["verdict"].startswith("holds") and found.get(away)), entry["says"]
            assert not (found["verdict"] == "doesn't" and found.get(towards)), entry["says"]


def test_a_section_counts_when_all_of_its_jobs_of_a_method_are_there(tmp_path):
    both = [j for j in jobs_of("small", ["remedies"], tmp_path, "cpu", False) if j.get("task") == "style"]
    jobs = [j for j in both if "full" not in j["name"]]
    assert 1 < len(jobs) < len(both)
    for job in jobs[1:]:
        open(job["file"], "w", encoding="utf-8").write(json.dumps([{"name": job["name"]}]))
    assert recording.finished(tmp_path) == []
    open(jobs[0]["file"], "w", encoding="utf-8").write(json.dumps([{"name": "the last"}]))
    assert [row["name"] for row in recording.finished(tmp_path)] == ["the last", *(j["name"] for j in jobs[1:])]


def test_a_job_that_has_all_settings_counts_alone_and_no_finding_takes_it_for_two(tmp_path):
    jobs = {j["name"]: j for j in jobs_of("small", ["variants"], tmp_path, "cpu", False)}
    rows = [{"section": "variants", "model": "small", "task": "style", "entry": "DoRA", "lr": 1e-3, "seed": seed,
             "dev": 0.9, "test": 0.9, "role": "reports"} for seed in (10, 11)]  # fmt: skip
    open(jobs["DoRA-style"]["file"], "w", encoding="utf-8").write(json.dumps(rows))
    assert recording.finished(tmp_path) == rows
    assert {entry["small"]["verdict"] for entry in table(rows)} == {"not measured"}


def test_what_is_never_right_cant_fall():
    rows = [{"section": "overfitting", "model": "tiny", "task": "translation", "epochs": epochs, "lr": lr, "seed": seed,
             "dev": 0.01, "dev_loss": 1 / epochs} for epochs in (1, 2) for lr in (1, 2) for seed in (0, 1)]  # fmt: skip
    (found,) = [entry["tiny"] for entry in table(rows) if entry["key"] == "overfits, exact"]
    assert (found["values"], found["verdict"]) == ([], NOT_REACHED) and "at most 1% right" in found["means"]


def test_the_kept_jobs_are_in_the_record():
    rows = recording.finished(recording.JOBS)
    assert {("updates", "small"), ("formats", "small"), ("ranks", "tiny")} <= {(r["section"], r["model"]) for r in rows}
    kept = {r["key"]: r["small"] for r in json.loads(recording.OUT.read_text(encoding="utf-8"))["findings"]}
    for entry in table(rows):
        if entry["small"]["verdict"] != "not measured":
            assert kept[entry["key"]]["values"] == entry["small"]["values"], entry["key"]


def test_what_is_measured_later_leaves_the_rest_of_the_record_and_is_judged_with_it(tmp_path, monkeypatch):
    about, out, paged = {"hardware": "GPU", "date": "d", "torch": "2"}, tmp_path / "record.json", tmp_path / "page.md"

    def measured(folder, rows):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / recording.ABOUT).write_text(json.dumps(about), encoding="utf-8")
        monkeypatch.setattr(recording, "finished", lambda work: rows)
        recording.record(tmp_path / folder, out, paged)
        return json.loads(out.read_text(encoding="utf-8"))

    def ranked(model, low, high):
        both = [_rated({2e-3: best / 2, 4e-3: best, 8e-3: best / 2}, section="ranks", targets="all-linear", r=r,
                       steps=9, model=model) for r, best in ((1, low), (16, high))]  # fmt: skip
        return [*both[0], *both[1]]

    first = measured("tiny", ranked("tiny", 0.1, 0.9))
    both = measured("small", ranked("small", 0.5, 0.6))
    (before,) = [entry for entry in first["findings"] if entry["key"] == "rank"]
    (after,) = [entry for entry in both["findings"] if entry["key"] == "rank"]
    assert after["tiny"] == before["tiny"] and before["small"]["verdict"] == "not measured"
    assert after["small"]["verdict"] == "holds, weaker", "than the tiny model's, which was measured before"
    assert both["tables"]["ranks"]["tiny"] == first["tables"]["ranks"]["tiny"] != []
    again = measured("again", ranked("small", 0.1, 0.9))
    assert [row["mean"] for row in again["tables"]["ranks"]["small"]] == [0.1, 0.9]


def test_no_section_whose_jobs_count_alone_is_half_new():
    """A finding of two settings stood on an old run of one and was shown beside a new run of the other."""
    for model in PLANS:
        for section in {"ranks", "variants"} & set(recording.ALONE):
            tasks = {}
            for job in jobs_of(model, [section], recording.JOBS, "cpu", False):
                tasks.setdefault(job["task"], set()).add(Path(job["file"]).exists())
            assert all(len(there) == 1 for there in tasks.values()), (model, section)


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
    assert "- [08](08_loraconfig.md): Rank 16 beats rank 1" in (tmp_path / "page.md").read_text(encoding="utf-8")
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


def test_a_trial_doesnt_write_among_the_kept_jobs(monkeypatch, capsys):
    from tools.real_model import __main__ as command

    monkeypatch.setattr(sys, "argv", ["real_model", "--trial", "capacity"])
    monkeypatch.setattr(command, "write", lambda *a: pytest.fail("it wrote"))
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "--trial needs --work" in capsys.readouterr().err
