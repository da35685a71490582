"""The engines' record: which runs are made, what a row says of them, and that a second call goes on."""

import json

import pytest

from tools.gpu import engines


@pytest.fixture
def launched(monkeypatch):
    """Launches that train nothing: an engine's losses are 0.25 off, a run that dies says so, the last two are there."""
    calls = []

    def launch(folder, engine, *, dies=0):
        calls.append((folder.name, engine, dies))
        (folder / "adapter.partial" / "checkpoints" / "checkpoint-3").mkdir(parents=True, exist_ok=True)
        if dies:
            said = "killed at 100.0\nRank 0 of 2 stops, because another has ended. It can go on from step 3"
            return {"status": 1, "seconds": 9.0, "said": said, "ended": 102.5}
        log = [{"loss": 3.0 - step + (0.25 if engine else 0.0)} for step in range(2)] + [{"train_runtime": 1.0}]
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        (folder / "adapter" / "log.json").write_text(json.dumps(log), encoding="utf-8")
        return {"status": 0, "seconds": 5.0, "said": "", "ended": 105.0}

    monkeypatch.setattr(engines, "launch", launch)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    return calls


def test_each_engine_stands_beside_one_process_and_a_kill_says_how_long_the_rest_lived(launched, tmp_path):
    engines.run(tmp_path, False, 600)
    head = json.loads((tmp_path / "engines.json").read_text(encoding="utf-8"))
    rows = {row["key"]: row for row in head["rows"]}
    assert list(rows) == ["ddp", "fsdp2", "fsdp2_qlora", "ddp, killed", "fsdp2, killed"], "deepspeed isn't installed"
    assert rows["ddp"]["alone"] == [3.0, 2.0] and rows["ddp"]["losses"] == [3.25, 2.25] and rows["ddp"]["apart"] == 0.25
    killed = rows["fsdp2, killed"]
    assert (killed["status"], killed["seconds_after"], killed["went_on"]) == (1, 2.5, 0)
    assert len(killed["said"]) == 1 and "go on from step 3" in killed["said"][0]
    assert [call for call in launched if call[1] is None] == [("one", None, 0), ("one-qlora", None, 0)], "once each"
    launched.clear()
    engines.run(tmp_path, False, 600)
    assert launched == [], "what is there isn't run again"


def test_no_run_starts_when_the_time_is_over(launched, tmp_path):
    engines.run(tmp_path, False, -1)
    assert launched == [] and not (tmp_path / "engines.json").exists()


def test_one_process_that_fails_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(
        engines, "launch", lambda *a, **k: {"status": 1, "seconds": 1.0, "said": "no such file", "ended": 0}
    )
    with pytest.raises(RuntimeError, match="one process .one. ended with 1:\nno such file"):
        engines.run(tmp_path, True, 600)


RECORD = json.loads((engines.ROOT / "assets" / "measurements" / "engines.json").read_text(encoding="utf-8"))
ROWS = {row["key"]: row for row in RECORD["rows"]}
NAMES = {"ddp": "DDP", "fsdp2": "FSDP2", "fsdp2_qlora": "FSDP2 with QLoRA", "zero3": "ZeRO-3"}


@pytest.mark.parametrize("page", ["tools/engines/README.md", "lessons/19_several_gpus.md"])
def test_the_record_of_two_gpus_is_what_the_pages_say(page):
    text = " ".join((engines.ROOT / page).read_text(encoding="utf-8").split())
    assert RECORD["backend"] == "nccl" and RECORD["gpus"] == 2
    for key, name in NAMES.items():
        row = ROWS[key]
        apart = max(abs(a - b) for a, b in zip(row["losses"], row["alone"], strict=True))
        assert row["status"] == 0 and len(row["losses"]) == engines.STEPS and apart == row["apart"]
        assert f"{name} {apart:.3f}" in text
    first = [abs(ROWS[key]["losses"][0] - ROWS[key]["alone"][0]) for key in NAMES]
    assert [f"{apart:.3f}" for apart in first] == ["0.000", "0.013", "0.049", "0.000"], "the chapter's two"


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero3"])
def test_a_rank_killed_on_gpus_ended_the_run_and_the_same_command_went_on(engine):
    killed = ROWS[f"{engine}, killed"]
    assert (killed["status"], killed["last"], killed["went_on"]) == (1, "checkpoint-3", 0)
    assert killed["losses"] == ROWS[engine]["losses"], "digit for digit"
    assert len(killed["said"]) == 1 and "go on from step 3" in killed["said"][0]
    readme = (engines.ROOT / "tools" / "engines" / "README.md").read_text(encoding="utf-8")
    assert f"{killed['seconds_after']} s" in readme and f"{NAMES[engine]}" in readme
    assert 0.9 <= killed["seconds_after"] <= 1.2, "the chapter's two numbers"
