"""The study: its space, one trial, pruning and divergence, budgets, and an interruption that changes nothing."""

import json
import math
import re
import subprocess
import sys
import weakref
from pathlib import Path

import optuna
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import run_study
from utils import lora, models
from utils.data import chat
from utils.evaluate import metrics
from utils.tinyworld import task_examples
from utils.train import loop, study

ROOT = Path(__file__).resolve().parents[2]

optuna.logging.set_verbosity(optuna.logging.ERROR)

GOOD = {"log2_r": 2, "ratio": 4.0, "lora_dropout": 0.1, "lr": 1e-2, "targets": "all-linear"}


@pytest.fixture(scope="module")
def work():
    model, tokenizer = models.load_base()
    train, dev = task_examples("style", "train", 60), task_examples("style", "dev", 12)
    return study.Work(model, tokenizer, train, dev, steps=6, report_every=2, batch_size=4)


def toy(trial):
    """An objective that costs nothing, with two reports on the way."""
    setting = study.suggest(trial)
    value = math.log(setting.lr / 8e-3) ** 2 + 0.1 * math.log(setting.ratio) ** 2 + setting.lora_dropout
    for step in (1, 2):
        trial.report(value + 1 / step, step)
        trial.set_user_attr("steps", step)
        if trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("steps", 3)
    return value


def drawn(one):
    return [(t.params, t.state.name, t.value, t.intermediate_values) for t in study.finished(one)]


# ---------------------------------------------------------------------------------------------------------- the space


def test_a_setting_is_what_its_parameters_say():
    setting = study.setting_of(GOOD)
    assert setting == study.Setting(4, 4.0, 0.1, 1e-2, "all-linear")
    assert setting.lora_alpha == 16


@given(
    st.integers(0, 5), st.floats(0.5, 8), st.floats(0, 0.2), st.floats(3e-4, 1e-1), st.sampled_from(list(study.TARGETS))
)
def test_what_is_suggested_is_what_the_trial_keeps(log2_r, ratio, dropout, lr, targets):
    params = {"log2_r": log2_r, "ratio": ratio, "lora_dropout": dropout, "lr": lr, "targets": targets}
    trial = optuna.trial.FixedTrial(params)
    assert study.suggest(trial) == (2**log2_r, ratio, dropout, lr, targets) == study.setting_of(trial.params)


def test_every_parameter_has_one_range_in_all_trials():
    one = study.open_study(study.Arm("random"))
    study.go_on(one, study.Arm("random", pruning=False), toy, trials=30)
    assert set(optuna.search_space.intersection_search_space(one.trials)) == set(GOOD)


# ---------------------------------------------------------------------------------------------------------- one trial


def test_a_run_is_the_training_loop_of_the_course(work):
    setting = study.Setting(4, 2.0, 0.1, 4e-3, "attention")
    (measured,) = work.run(setting, seed=3, examine=[work.dev])
    model, tokenizer = models.load_base()
    torch.manual_seed(3)
    lora.inject(model, study.ATTENTION, 4, 8, 0.1)
    loop.train(model, tokenizer, work.train, steps=6, lr=4e-3, batch_size=4, seed=3, progress=False)
    alone = study.teacher_forced(model, tokenizer, work.dev)
    assert measured.loss == pytest.approx(alone.loss, rel=1e-5)  # two parameter groups: Adam's sums in another order
    assert measured.exact == alone.exact


def test_the_base_is_as_it_was_after_a_run(work):
    before = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    work.run(study.setting_of(GOOD))
    with pytest.raises(ZeroDivisionError):
        work.run(study.setting_of(GOOD), after_step=lambda step: 1 // 0)
    assert not lora.lora_layers(work.model) and not work.model.training
    after = work.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_teacher_forcing_counts_what_greedy_decoding_writes():
    model, tokenizer = models.load_base()
    torch.manual_seed(0)
    lora.inject(model, "all-linear", 8, 32)
    loop.train(model, tokenizer, task_examples("style", "train", 500), steps=60, lr=6e-3, batch_size=8, progress=False)
    dev = task_examples("style", "dev", 40)
    exact = study.teacher_forced(model, tokenizer, dev, batch_size=7).exact
    assert exact == metrics.exact_match(model, tokenizer, dev)
    assert 0.2 < exact < 1, "the run must be neither useless nor perfect for the comparison to mean anything"


def test_the_loss_is_a_mean_over_tokens_whatever_the_batches(work):
    whole = work.model(**chat.collate(chat.encode(work.tokenizer, work.dev), work.tokenizer.pad_token_id)).loss
    for size in (1, 5, 100):
        measured = study.teacher_forced(work.model, work.tokenizer, work.dev, batch_size=size)
        assert measured.loss == pytest.approx(whole.item(), rel=1e-5)


def test_the_rate_of_b_alone_is_raised(work):
    moved = {}
    for b_rate in (1, 16):

        def keep(step, b_rate=b_rate):
            if step == 0:
                layer = next(iter(lora.lora_layers(work.model).values()))
                moved[b_rate] = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()

        work.run(study.setting_of(GOOD | {"lora_dropout": 0.0}), after_step=keep, b_rate=b_rate)
    assert torch.equal(moved[1][0], moved[16][0])  # A begins with no gradient, and keeps its rate
    torch.testing.assert_close(moved[16][1], 16 * moved[1][1])  # Adam's first step is as long as the rate


def test_a_trial_reports_keeps_its_books_and_returns_the_last_loss(work):
    one = optuna.create_study()
    one.enqueue_trial(GOOD)
    one.optimize(lambda t: study.objective(t, work), n_trials=1)
    (trial,) = one.trials
    assert list(trial.intermediate_values) == [2, 4, 6]
    assert trial.value == trial.intermediate_values[6] < trial.intermediate_values[2]
    assert trial.user_attrs["steps"] == 6 and 0 <= trial.user_attrs["exact"] <= 1


def test_a_pruned_trial_stops_and_counts_its_steps(work):
    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.last_step == 4

    one = optuna.create_study(pruner=Second())
    one.optimize(lambda t: study.objective(t, work), n_trials=1)
    assert one.trials[0].state.name == "PRUNED"
    assert one.trials[0].user_attrs["steps"] == study.spent(one) == 4
    assert not lora.lora_layers(work.model)


def test_a_run_that_diverges_is_infinitely_bad_and_no_failure(work, monkeypatch):
    def diverges(*args, after_step, **kwargs):
        after_step(0)
        raise loop.Diverged("not a number")

    monkeypatch.setattr(loop, "train", diverges)
    one = optuna.create_study()
    one.optimize(lambda t: study.objective(t, work), n_trials=1)
    (trial,) = one.trials
    assert trial.state.name == "COMPLETE" and trial.value == math.inf
    assert trial.user_attrs["diverged"] and trial.user_attrs["steps"] == 2
    assert run_study.by_state(trial) == "diverged"


def test_a_rate_beyond_reason_diverges_for_real(work):
    with pytest.raises(loop.Diverged, match="no finite number"):
        work.run(study.setting_of(GOOD | {"lr": 1e30}))
    assert issubclass(loop.Diverged, ValueError)


def test_looking_less_often_than_a_run_is_long_is_refused(work):
    with pytest.raises(ValueError, match="report_every is 9: it must be from 1 to the 6 steps"):
        study.Work(work.model, work.tokenizer, work.train, work.dev, steps=6, report_every=9)
    assert study.Work(work.model, work.tokenizer, work.train, work.dev, steps=6, report_every=6).report_every == 6


# ---------------------------------------------------------------------------------------------------------- the study


ARMS = [study.Arm(s, p, 1, 4) for s in ("random", "TPE") for p in (True, False)]


@pytest.mark.parametrize("arm", ARMS, ids=[arm.name for arm in ARMS])
@pytest.mark.parametrize("after", [0, 3, 9])
def test_an_interruption_changes_nothing(arm, after, tmp_path):
    whole = study.open_study(arm)
    study.go_on(whole, arm, toy, trials=14)

    def stopped(trial):
        if trial.number == after:
            study.suggest(trial)
            trial.report(5.0, 1)
            raise KeyboardInterrupt
        return toy(trial)

    file = tmp_path / "study.journal"
    with pytest.raises(KeyboardInterrupt):
        study.go_on(study.open_study(arm, file), arm, stopped, trials=14)
    again = study.open_study(arm, file)
    study.go_on(again, arm, toy, trials=14)
    assert [t.state.name for t in again.trials].count("FAIL") == 1
    assert drawn(again) == drawn(whole)
    assert len(study.finished(again)) == 14


def test_a_killed_process_leaves_a_running_trial_that_is_failed_and_made_again(tmp_path):
    program = f"""
import os, sys
from utils.train import study
from tests.train.test_study import toy
arm = study.Arm("TPE", True, 1, 4)
def killed(trial):
    if trial.number == 6:
        study.suggest(trial)
        os._exit(9)
    return toy(trial)
study.go_on(study.open_study(arm, {str(tmp_path / "j")!r}), arm, killed, trials=10)
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 9
    arm = study.Arm("TPE", True, 1, 4)
    again, whole = study.open_study(arm, tmp_path / "j"), study.open_study(arm)
    assert [t.state.name for t in again.trials][6:] == ["FAIL"]
    study.go_on(again, arm, toy, trials=10)
    study.go_on(whole, arm, toy, trials=10)
    assert drawn(again) == drawn(whole)


def test_an_interrupted_study_of_real_runs_ends_like_the_whole_one(work, tmp_path):
    arm = study.Arm("TPE", True, 0, startup=2)
    whole = study.open_study(arm)
    study.go_on(whole, arm, lambda t: study.objective(t, work), trials=4)

    def cut(trial):
        if trial.number == 2:
            study.suggest(trial)
            raise KeyboardInterrupt
        return study.objective(trial, work)

    with pytest.raises(KeyboardInterrupt):
        study.go_on(study.open_study(arm, tmp_path / "j"), arm, cut, trials=4)
    again = study.open_study(arm, tmp_path / "j")
    study.go_on(again, arm, lambda t: study.objective(t, work), trials=4)
    assert drawn(again) == drawn(whole)


def test_the_whole_file_of_a_finished_study_is_read_again(tmp_path):
    arm = study.Arm("TPE", True, 2)
    one = study.open_study(arm, tmp_path / "j")
    study.go_on(one, arm, toy, trials=12)
    before = drawn(one)
    again = study.open_study(arm, tmp_path / "j")
    study.go_on(again, arm, toy, trials=12)  # nothing left to do
    assert drawn(again) == before


def test_a_line_that_was_cut_off_costs_one_trial_at_most(tmp_path):
    arm, file = study.Arm("random", False), tmp_path / "j"
    first = study.open_study(arm, file)
    study.go_on(first, arm, toy, trials=5)
    whole = drawn(first)
    file.write_bytes(file.read_bytes()[:-7])  # the event that ended the fifth trial
    again = study.open_study(arm, file)
    assert drawn(again) == whole[:4]
    study.go_on(again, arm, toy, trials=5)
    assert drawn(study.open_study(arm, file)) == whole
    for line in file.read_text().splitlines():
        json.loads(line)


def test_optuna_alone_would_write_into_the_broken_line(tmp_path):
    """Why open_study cuts the journal: without that the file can't be used any more."""
    from optuna.storages import JournalStorage, journal

    file = tmp_path / "j"
    arm = study.Arm("random", False)
    study.go_on(study.open_study(arm, file), arm, toy, trials=2)
    file.write_bytes(file.read_bytes()[:-7])
    storage = JournalStorage(journal.JournalFileBackend(str(file), journal.JournalFileOpenLock(str(file))))
    with pytest.raises((json.JSONDecodeError, AttributeError)):
        for _ in range(3):
            optuna.load_study(study_name="study", storage=storage).optimize(toy, n_trials=1)


def test_a_bug_in_the_objective_is_raised_and_its_trial_failed():
    one = study.open_study(study.Arm())
    with pytest.raises(ZeroDivisionError):
        study.go_on(one, study.Arm(), lambda trial: 1 / 0, trials=3)
    assert [t.state.name for t in one.trials] == ["FAIL"] and study.finished(one) == []


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 60), st.booleans(), st.integers(0, 50))
def test_a_budget_is_never_exceeded_and_hardly_missed(budget, pruning, seed):
    arm = study.Arm("random", pruning, seed, startup=2)
    one = study.open_study(arm)
    study.go_on(one, arm, toy, budget=budget, longest=3)
    assert budget - 3 < study.spent(one) <= budget


def test_pruning_buys_more_trials_for_the_same_steps():
    counts = {}
    for pruning in (True, False):
        arm = study.Arm("random", pruning, 0, startup=4)
        one = study.open_study(arm)
        study.go_on(one, arm, toy, budget=90, longest=3)
        counts[pruning] = len(study.finished(one))
    assert counts[False] == 30 and counts[True] > 36


@pytest.mark.parametrize("limits", [{}, {"trials": 3, "budget": 9, "longest": 3}])
def test_a_study_without_an_end_is_refused(limits):
    with pytest.raises(ValueError, match="give either trials or budget"):
        study.go_on(study.open_study(study.Arm()), study.Arm(), toy, **limits)


def test_a_budget_needs_the_length_of_a_trial():
    with pytest.raises(ValueError, match="how many steps an unpruned trial takes"):
        study.go_on(study.open_study(study.Arm()), study.Arm(), toy, budget=9)


def test_an_unknown_sampler_is_named():
    with pytest.raises(ValueError, match="unknown sampler 'grid': choose random or TPE"):
        study.open_study(study.Arm("grid"))


def test_two_seeds_draw_differently_and_one_seed_alike():
    found = []
    for seed in (0, 0, 1):
        arm = study.Arm("random", False, seed)
        one = study.open_study(arm)
        study.go_on(one, arm, toy, trials=3)
        found.append([t.params for t in one.trials])
    assert found[0] == found[1] != found[2]
    assert len({json.dumps(p) for p in found[0]}) == 3


# ----------------------------------------------------------------------------------------------------------- the tool


def test_the_winner_is_the_best_trial_that_ran_to_its_end():
    """Optuna gives a pruned trial the last value that it reported, which may be lower than the winner's."""
    one = optuna.create_study()
    for value, state in ((1.0, "COMPLETE"), (0.5, "PRUNED"), (0.8, "COMPLETE")):
        report = {1: value}
        one.add_trial(
            optuna.trial.create_trial(
                value=value if state == "COMPLETE" else None,
                intermediate_values=report,
                state=optuna.trial.TrialState[state],
            )
        )
    assert [t.number for t in run_study.by_value(one)] == [2, 0]


def test_reruns_are_kept_and_a_cut_line_is_made_again(tmp_path):
    setting = study.setting_of(GOOD)
    runs = [run_study.Rerun(setting, seed) for seed in (1, 2)]
    kept = run_study.Reruns(tmp_path / "r")
    for run in runs:
        kept.add(run, [study.Measured(0.5, 0.25), study.Measured(1.5, 0.0)])
    text = (tmp_path / "r").read_text()
    (tmp_path / "r").write_text(text[:-9])
    again = run_study.Reruns(tmp_path / "r")
    assert again.missing(runs) == [runs[1]]
    again.add(runs[1], [study.Measured(1.0, 1.0)])
    assert run_study.Reruns(tmp_path / "r").missing(runs) == []


def test_a_record_has_no_infinity(tmp_path):
    run = run_study.Rerun(study.setting_of(GOOD), 1)
    rows = run_study.rerun_rows([run], {run: 2 * [study.Measured(math.inf, 0.0)]})
    text = run_study.readable({"studies": [], "rows": rows})
    assert json.loads(text)["rows"][0]["dev_loss"] is None


# --------------------------------------------------------------------------------------------------------- the record

RECORD = json.loads((ROOT / "assets" / "measurements" / "study.json").read_text())


def test_no_study_of_the_record_spent_more_than_its_budget():
    plan = RECORD["plan"]
    assert len(RECORD["studies"]) == 16
    for one in RECORD["studies"]:
        steps = sum(trial["steps"] for trial in one["trials"])
        assert plan["steps"] * (plan["budget"] - 1) < steps <= plan["steps"] * plan["budget"]
        assert one["pruning"] or len(one["trials"]) == plan["budget"]


def test_the_winner_of_the_record_is_its_best_whole_trial():
    for one in RECORD["studies"]:
        whole = [i for i, trial in enumerate(one["trials"]) if trial["state"] == "complete"]
        assert one["winner"] == min(whole, key=lambda i: study.last_loss(one["trials"][i]))


def test_no_seed_of_a_rerun_was_a_seed_of_the_studies():
    used = {run["seed"] for row in [*RECORD["top"], RECORD["recipe"], *RECORD["lora_plus"]] for run in row["again"]}
    used |= {run["seed"] for one in RECORD["studies"] for run in one["winner_again"]}
    assert 0 not in used and min(used) == 100  # every trial of a study trains with seed 0


def test_ways_to_search_with_one_seed_begin_with_the_same_settings():
    def beginning(one):
        return [(t["r"], t["ratio"], t["lr"], t["targets"]) for t in one["trials"][:8]]

    by_seed = {}
    for one in RECORD["studies"]:
        by_seed.setdefault(one["seed"], []).append(beginning(one))
    for found in by_seed.values():
        assert found == 4 * found[:1]


def test_a_study_made_of_the_record_holds_its_whole_trials():
    pooled = study.from_record(RECORD["studies"][:2])
    rows = [t for one in RECORD["studies"][:2] for t in one["trials"] if t["state"] == "complete"]
    assert [t.value for t in pooled.trials] == [study.last_loss(row) for row in rows]
    assert [study.setting_of(t.params)._asdict() for t in pooled.trials] == [
        {name: row[name] for name in study.Setting._fields} for row in rows
    ]


def test_the_last_loss_is_that_of_the_last_step_and_infinite_after_a_divergence():
    trial = {"state": "complete", "dev_loss": {"15": 3.0, "105": 1.0, "60": 2.0}}
    assert study.last_loss(trial) == 1.0
    assert study.last_loss(trial | {"state": "diverged"}) == math.inf


def test_eleven_of_the_twelve_winners_are_worse_with_new_seeds():
    more = {row["in_the_study"]: row["again"] for row in RECORD["top"]}  # eight seeds instead of four
    ratios = {}
    for one in RECORD["studies"]:
        promised = study.last_loss(one["trials"][one["winner"]])
        again = [run["dev_loss"] for run in more.get(promised, one["winner_again"])]
        ratios[promised] = sum(again) / len(again) / promised
    assert len(ratios) == 12
    assert sum(ratio > 1 for ratio in ratios.values()) == 11
    assert max(ratios.values()) == pytest.approx(2.56, abs=0.01)


def test_the_learning_rate_is_first_in_three_of_four_random_studies_and_one_of_four_by_tpe():
    found = {("random", False): [], ("TPE", True): []}
    for one in RECORD["studies"]:
        if (way := (one["sampler"], one["pruning"])) in found:
            found[way].append(optuna.importance.get_param_importances(study.from_record([one])))
    first = {way: sorted(max(one, key=one.__getitem__) for one in ones) for way, ones in found.items()}
    assert first["random", False] == ["log2_r", "lr", "lr", "lr"]
    assert first["TPE", True] == ["log2_r", "lora_dropout", "lora_dropout", "lr"]
    shares = [one["lr"] for one in found["random", False]]
    assert (min(shares), max(shares)) == pytest.approx((0.25, 0.76), abs=0.01)


def test_at_three_times_the_steps_the_winners_lead_over_the_recipe_is_gone():
    def exact(runs):
        return sum(run["test_exact"] for run in runs) / len(runs)

    assert RECORD["longer"]["steps"] == 3 * RECORD["plan"]["steps"]
    assert exact(RECORD["top"][0]["again"]) - exact(RECORD["recipe"]["again"]) > 0.4
    assert all(exact(RECORD["longer"][name]) > 0.98 and len(RECORD["longer"][name]) == 8 for name in ("top", "recipe"))


# ---------------------------------------------------------------------------------------------- the lesson's own code

LESSON = (ROOT / "lessons" / "15_choosing_settings.md").read_text(encoding="utf-8")


def lesson_code(begins, fence="```python"):
    """The lesson's one cell that begins so."""
    (code,) = re.findall(rf"^{re.escape(fence)}\n({re.escape(begins)}.*?)^```$", LESSON, re.M | re.S)
    return compile(code, "the lesson", "exec")


def billions(trial):
    lr, log2_r = trial.suggest_float("lr", 2e-5, 2e-3, log=True), trial.suggest_int("log2_r", 3, 6)
    return math.log(lr / 1e-4) ** 2 + log2_r


@pytest.mark.parametrize("dies_at", [0, 1, 10, 23])
def test_the_first_screens_lines_run_again_after_a_crash_end_with_24_trials(dies_at, tmp_path, monkeypatch):
    """Killed trials don't count, pruned ones do, and the present setting is tried once, also after an early crash."""
    monkeypatch.chdir(tmp_path)

    def objective(trial):
        value = billions(trial)
        if trial.number == dies_at:
            raise KeyboardInterrupt
        if trial.number % 3 == 2:
            raise optuna.TrialPruned
        return value

    code = lesson_code("study = optuna.create_study(\n    study_name=", "```python .noeval")
    names = {"optuna": optuna, "torch": torch, "objective": objective}
    with pytest.raises(KeyboardInterrupt):
        exec(code, names)
    for _ in range(2):  # the second time there is nothing left to do
        exec(code, names)
        found = study.finished(names["study"])
        assert len(found) == 24 and len(names["study"].trials) == 25
        assert [trial.params for trial in found].count({"lr": 2e-4, "log2_r": 4}) == 1


def test_what_doesnt_fit_into_memory_is_pruned_and_freed_and_another_error_is_raised():
    class Weights:
        pass

    kept, left = [], []

    def train(setting, seed, evaluated, callbacks):
        weights = Weights()
        kept.append(weakref.ref(weights))
        raise torch.OutOfMemoryError if setting["log2_r"] > 2 else ZeroDivisionError

    names = {
        "optuna": optuna, "torch": torch, "math": math, "train": train, "held_out": {"dev": None},
        "Report": lambda trial: None,
    }  # fmt: skip
    exec(lesson_code("def objective(trial)"), names)
    one = optuna.create_study()
    for log2_r in (5, 1):
        one.enqueue_trial({"lr": 1e-3, "log2_r": log2_r})
    callback = lambda *_: left.append(kept[-1]() is not None)  # noqa: E731 - the place where the lesson frees the cache
    with pytest.raises(ZeroDivisionError):
        one.optimize(names["objective"], n_trials=2, gc_after_trial=True, callbacks=[callback])
    assert [trial.state.name for trial in one.trials] == ["PRUNED", "FAIL"]
    assert left == [False], "the trial's model must be gone when the cache is freed"


def test_the_lessons_objective_answers_infinity_for_a_run_that_diverged():
    names = {
        "optuna": optuna, "torch": torch, "math": math, "held_out": {"dev": None}, "Report": lambda trial: None,
        "train": lambda setting, *_: {"eval_loss": math.nan if setting["lr"] > 1e-2 else 1.5},
    }  # fmt: skip
    exec(lesson_code("def objective(trial)"), names)
    assert names["objective"](optuna.trial.FixedTrial({"lr": 1e-3, "log2_r": 3})) == 1.5
    assert names["objective"](optuna.trial.FixedTrial({"lr": 5e-2, "log2_r": 3})) == math.inf


def test_a_seeded_sampler_draws_the_same_again_after_a_restart_and_an_unseeded_one_doesnt():
    for seed, alike in ((0, True), (None, False)):
        storage = optuna.storages.InMemoryStorage()
        for _ in range(2):
            sampler = optuna.samplers.TPESampler(n_startup_trials=8, seed=seed)
            one = optuna.create_study(storage=storage, study_name="s", sampler=sampler, load_if_exists=True)
            one.optimize(billions, n_trials=3)
        drawn_lr = [trial.params["lr"] for trial in one.trials]
        assert (drawn_lr[:3] == drawn_lr[3:]) == alike


def test_pruning_kept_every_good_setting_of_the_record():
    """Random studies with and without pruning begin with the same settings; the first eight can't be pruned."""
    ways = {True: [], False: []}
    for one in RECORD["studies"]:
        if one["sampler"] == "random":
            ways[one["pruning"]] += one["trials"][8:24]
    setting = ("r", "ratio", "lr", "lora_dropout", "targets")
    assert all(a[name] == b[name] for a, b in zip(ways[True], ways[False], strict=True) for name in setting)
    order = sorted(range(64), key=lambda i: study.last_loss(ways[False][i]))
    states = [ways[True][i]["state"] for i in order]
    assert states.count("pruned") == 49 and states.index("pruned") == 15


@pytest.fixture
def report():
    """The lesson's callback, and what it is called with."""
    names = {"transformers": transformers, "math": math, "optuna": optuna}
    exec(lesson_code("class Report"), names)
    one = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=1.0))
    trial = one.ask()
    control = transformers.TrainerControl()

    def call(step, loss):
        state = transformers.TrainerState(global_step=step, max_steps=24)
        names["Report"](trial).on_evaluate(None, state, control, metrics={"eval_loss": loss})
        return control, one.trials[0]

    return call


def test_the_lessons_callback_reports_and_prunes_but_not_at_the_end(report):
    _, trial = report(6, 0.5)
    assert trial.intermediate_values == {6: 0.5}
    with pytest.raises(optuna.TrialPruned):
        report(12, 2.0)
    report(24, 2.0)


def test_the_lessons_callback_ends_a_run_that_diverged_without_pruning_it(report):
    control, trial = report(6, math.nan)
    assert control.should_training_stop and not trial.intermediate_values
