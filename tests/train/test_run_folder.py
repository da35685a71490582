"""utils.train.run_folder: a run that stops leaves what there is, says so, and goes on; or leaves nothing."""

from __future__ import annotations

import json

import pytest

from utils.train.run_folder import (
    CHECKPOINTS,
    TRAINED,
    TrainedOn,
    is_trained,
    last_checkpoint,
    partial_folder,
    unfinished,
    what_is_left,
)

RUN = {"data": "ab", "r": 8, "held_out": 0.1}
DONE = TrainedOn(27, 1067, 512, 0, 12, 3.0, 12, 12)


def checkpoint(folder, step, state="{}"):
    made = folder / CHECKPOINTS / f"checkpoint-{step}"
    made.mkdir(parents=True)
    if state is not None:
        (made / "trainer_state.json").write_text(state)
    return made


def stop(out, fill=lambda folder: None, error=KeyboardInterrupt, run=RUN):
    with pytest.raises(error), unfinished(out, run) as partial:
        fill(partial)
        raise error


def test_a_run_that_ends_leaves_its_files_alone(tmp_path):
    with unfinished(tmp_path / "out", RUN) as partial:
        checkpoint(partial, 10)
        (partial / TRAINED).write_text(json.dumps(DONE._asdict()))
        (partial / "README.md").write_text("a card")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["README.md"]
    with pytest.raises(FileExistsError, match="exists already"), unfinished(tmp_path / "out", RUN):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_stopped_before_there_is_anything_it_leaves_nothing(tmp_path, error):
    stop(tmp_path / "out", error=error)
    stop(tmp_path / "out", lambda folder: checkpoint(folder, 5, None), error=error)
    assert list(tmp_path.iterdir()) == [] and what_is_left(tmp_path / "out") == ""


def test_stopped_later_it_goes_on_and_says_so(tmp_path, capsys):
    out = tmp_path / "out"
    stop(out, lambda folder: checkpoint(folder, 10))
    assert "can go on from step 10: the same command again" in what_is_left(out)
    with pytest.raises(KeyboardInterrupt), unfinished(out, RUN) as partial:
        assert last_checkpoint(partial / CHECKPOINTS).name == "checkpoint-10"
        (partial / TRAINED).write_text(json.dumps(DONE._asdict()))
        raise KeyboardInterrupt
    assert (
        "An earlier run of the same file and settings stopped. The run can go on from step 10"
        in capsys.readouterr().out
    )
    assert "The adapter is trained and saved in" in what_is_left(out) and is_trained(partial_folder(out)) == DONE


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 100, None)
    checkpoint(tmp_path, 20, '{"global_step": 2')
    assert last_checkpoint(tmp_path / CHECKPOINTS).name == "checkpoint-9"
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_another_runs_folder_is_refused_with_what_differs_and_kept(tmp_path):
    out = tmp_path / "out"
    stop(out, lambda folder: checkpoint(folder, 10))
    with pytest.raises(FileExistsError, match="r was 8 and is 16.*that run's settings to go on, remove the folder"):
        with unfinished(out, {**RUN, "r": 16}):
            pass
    assert last_checkpoint(partial_folder(out) / CHECKPOINTS) is not None


def test_a_strangers_folder_is_refused_and_kept(tmp_path):
    mine = tmp_path / "out.partial"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is no unfinished run"), unfinished(tmp_path / "out", RUN):
        pass
    assert (mine / "thesis.txt").read_text() == "years of work"
