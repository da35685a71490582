"""The race under GRPO: a trial from end to end, resumed, its rates chosen on dev, and what it measures with."""

import json
import math
from collections import Counter

import pytest
import torch

from tools import measure_rewards as rewards
from utils.data.chat import collate, encode, token_id
from utils.lora.layer import count_parameters
from utils.models import load_base
from utils.tinyworld.rewarded import gold_examples, request_rows

SHORT = rewards.TRIAL._replace(steps=2, every=1, limit=6, dev=3, test=3, train=8)
FEW = [entry for entry in rewards.ENTRIES if entry.name in ("LoRA r=4", "rejection sampling", "SFT on gold")]


@pytest.fixture
def short(monkeypatch, tmp_path):
    """A trial of one rank and the two controls, two steps a run; returns what calls it and gives the record."""
    monkeypatch.setattr(rewards, "TRIAL", SHORT)
    monkeypatch.setattr(rewards, "ENTRIES", FEW)
    arguments = ["x", "--trial", "--workers", "0", "--device", "cpu", "--work", str(tmp_path / "work")]
    arguments += ["--sections", "race", "control", "hacking", "--out", str(tmp_path / "rewards.json")]

    def run() -> dict:
        monkeypatch.setattr("sys.argv", arguments)
        rewards.main()
        return json.loads((tmp_path / "rewards.json").read_text())

    return run


def test_the_trial_runs_from_end_to_end_and_a_second_call_trains_nothing(short, monkeypatch, tmp_path):
    record = short()
    assert record["what"].startswith("TRIAL") and record["choose"] != record["report"]
    names = {section: [entry["name"] for entry in record[section]] for section in ("race", "control", "hacking")}
    assert names == {
        "race": ["LoRA r=4"], "control": ["rejection sampling", "SFT on gold"],
        "hacking": ["mentions", "mentions, beta 0.1"],
    }  # fmt: skip
    for entry in (entry for section in names for entry in record[section]):
        assert entry["seeds"] == list(SHORT.report) and entry["diverged"] == 0
        assert len(entry["told_by_seed"]) == 2 and entry["told_interval"][0] <= entry["told"]
        assert entry["history"]["step"] == [1, 2]
    grpo, sft = record["race"][0], record["control"][1]
    assert set(grpo["dev_by_rate"]) == {str(rate) for rate in FEW[0].rates[:2]}
    assert grpo["bits"]["episodes"] == SHORT.steps * SHORT.group * SHORT.prompts
    assert grpo["bits"]["per_episode"] <= grpo["bits"]["per_episode_at_most"] == pytest.approx(math.log2(5), abs=1e-4)
    assert sft["bits"]["answers"] == SHORT.steps * SHORT.prompts and sft["bits"]["per_token"] > 0
    assert {(b["section"], b["name"]) for b in record["bits"]} == {("race", "LoRA r=4"), *(
        ("control", name) for name in names["control"])}  # fmt: skip
    assert record["tried"] == [], "everything that was tried was reported too"
    assert record["base"]["race"]["kl"] == 0 and len(record["base"]["race"]["said"]) == 2

    monkeypatch.setattr(rewards, "one_run", lambda job: pytest.fail(f"{job['file']} was trained again"))
    again = short()
    assert again == record
    assert len(list((tmp_path / "work").glob("*.json"))) == 3 * (2 + 2) + 2 * 2 + 1


def test_a_run_writes_down_what_it_was_rewarded(monkeypatch, tmp_path):
    monkeypatch.setattr(rewards, "TRIAL", SHORT)
    job = rewards.job_of(FEW[0], "report", 1e-3, 3, tmp_path, "cpu", True)
    bench = rewards.Bench(job)
    bench.train()
    assert [len(step) for step in bench.rewards] == [SHORT.group * SHORT.prompts] * SHORT.steps
    for line, given in zip(bench.history, bench.rewards, strict=True):
        assert line["reward"] == pytest.approx(sum(given) / len(given), abs=1e-4) == line["told"]
    assert bench.halfway and bench.halfway.keys() == bench.marks().keys()


def row(name, phase, lr, seed, dev, section="race"):
    return {"section": section, "name": name, "phase": phase, "lr": lr, "seed": seed, "dev": dev}


def test_the_rate_is_chosen_by_the_mean_on_dev_alone(tmp_path):
    rows = [row("LoRA r=4", "choose", lr, s, dev) for lr, own in {
        0.001: (0.5, 0.9), 0.002: (0.8, 0.8), 0.004: (1.0, None)}.items() for s, dev in enumerate(own)]  # fmt: skip
    rows += [row("LoRA r=4", "report", 0.001, 3, 1.0), row("LoRA r=4", "choose", 0.001, 0, 1.0, "small")]
    assert rewards.chosen_rate(rows, "race", "LoRA r=4") == 0.002, "0.004 diverged once; report's seeds don't count"
    assert rewards.chosen_rate(rows, "race", "LoRA r=1") is None
    jobs = rewards.second_jobs(rows, ["race", "scale", "sparse"], tmp_path, "cpu", False)
    assert {job["lr"] for job in jobs} == {0.002} and {job["phase"] for job in jobs} == {"report"}
    assert Counter((job["section"], job["seed"]) for job in jobs) == Counter(
        {("race", s): 1 for s in rewards.REPORT} | {("scale", s): 3 for s in rewards.REPORT}
        | {("sparse", s): 1 for s in rewards.REPORT}
    ), "nothing is reported whose rates weren't tried"  # fmt: skip


def test_runs_that_chose_a_rate_and_reported_nothing_are_in_the_record_as_what_they_are():
    mark = {"told": 0.9, "kl": 0.5}
    head = {"method": "LoRA", "r": 1, "how": "grpo", "reward": "words_told", "settings": {}, "said": [], "seconds": 9.0}
    rows = [row("LoRA r=1", "choose", lr, 0, dev, "small") | head | {"end": mark, "half": mark, "hardware": "H"}
            for lr, dev in ((2e-3, 0.9), (1e-3, None))]  # fmt: skip
    first, second = rewards.record_of(rows, "cpu", False)["tried"]
    assert (first["lr"], first["split"], first.get("told")) == (1e-3, "dev", None), "it diverged"
    assert (second["lr"], second["told"], second["told_at_half"], second["hardware"]) == (2e-3, 0.9, 0.9, "H")


def test_choosing_and_reporting_share_no_seed_and_no_job_another_jobs_file(tmp_path):
    for plan in rewards.PLANS.values():
        assert not set(plan.choose) & set(plan.report)
        assert plan.steps % plan.every == 0 and plan.steps % 2 == 0
    jobs = rewards.first_jobs(rewards.SECTIONS, tmp_path, "cpu", False)
    assert len({job["file"] for job in jobs}) == len(jobs)
    chosen = [row(e.name, "choose", e.rates[0], 0, 0.5, e.section) for e in rewards.ENTRIES]
    jobs += rewards.second_jobs(chosen, rewards.SECTIONS, tmp_path, "cpu", False)
    assert len({job["file"] for job in jobs}) == len(jobs)


def test_a_job_that_fails_is_told_and_leaves_no_file(monkeypatch, tmp_path, capsys):
    def fails(job):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(rewards, "one_run", fails)
    job = rewards.job_of(FEW[0], "choose", 1e-3, 0, tmp_path, "cpu", True)
    assert rewards.run_job(job) == [] and not list(tmp_path.iterdir())
    told = capsys.readouterr().out
    assert "race-LoRA_r=4-choose-0.001-0 FAILED" in told and "out of memory" in told


def test_a_run_that_diverges_is_a_row_without_marks(monkeypatch, tmp_path):
    def diverges(self):
        raise rewards.loop.Diverged("the loss is nan at step 3")

    monkeypatch.setattr(rewards.Bench, "train", diverges)
    found = rewards.one_run(rewards.job_of(FEW[0], "report", 1.0, 3, tmp_path, "cpu", True))
    assert found["dev"] is None and "step 3" in found["diverged"]
    entry = rewards.entry_of([found], [])
    assert entry["diverged"] == 1 and "told" not in entry


@pytest.mark.parametrize(("method", "r"), [("LoRA", 4), ("PiSSA", 4), ("orthogonal", 4), ("full fine-tuning", None)])
def test_every_start_computes_as_the_base_does(method, r, tokenizer):
    base, _ = load_base(torch.float32)
    model = rewards.build(load_base(torch.float32)[0], method, r, seed=0).eval()
    ids = tokenizer("Once upon a time, there was a fox.", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, base(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    whole = sum(p.numel() for p in base.parameters())
    assert count_parameters(model)[0] == (whole if r is None else 54_272)


def test_nats_are_the_mean_cross_entropy_over_all_chunks(base, tokenizer):
    rows = request_rows("four", "train", 5)
    batch = collate(encode(tokenizer, gold_examples(rows)), token_id(tokenizer, "pad"))
    with torch.no_grad():
        wanted = base(**batch).loss.item()
    assert rewards.nats(base, batch, chunk=2) == pytest.approx(wanted, rel=1e-5)


def test_entropy_in_bits():
    assert rewards.entropy([0, 0.25, 0.5, 1]) == 2 and rewards.entropy([1, 1]) == 0
    assert rewards.entropy([0, 1, 1, 1]) == pytest.approx(0.8113, abs=1e-4)
