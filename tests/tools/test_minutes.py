"""tools.minutes: the sentence at a chapter's head follows the record, and stays when it is near enough."""

import json

import pytest

from tools.build.rules import RECORD, near
from tools.minutes import rounded, write_sentences

SENTENCE = "About 60 minutes.\nRunning all cells takes about {} s on two CPU cores, without a network.\n"


@pytest.mark.parametrize(
    "seconds, said", [(0.4, 5), (12.4, 10), (12.6, 15), (57.4, 55), (57.6, 60), (64, 60), (116, 120)]
)
def test_seconds_are_rounded_as_one_speaks_and_stay_near(seconds, said):
    assert rounded(seconds) == said and near(said, seconds)


def test_only_sentences_far_from_their_record_are_written(tmp_path):
    said = {"00_near": (40, 44.0), "01_far": (40, 116.2), "02_unmeasured": (40, None)}
    (tmp_path / "lessons").mkdir()
    for stem, (seconds, _) in said.items():
        (tmp_path / "lessons" / f"{stem}.md").write_text(SENTENCE.format(seconds))
    measured = {stem: seconds for stem, (_, seconds) in said.items() if seconds}
    (tmp_path / RECORD).parent.mkdir(parents=True)
    (tmp_path / RECORD).write_text(json.dumps({"seconds": measured}))
    assert write_sentences(tmp_path) == ["01_far"]
    texts = {path.stem: path.read_text() for path in (tmp_path / "lessons").glob("*.md")}
    assert texts == {stem: SENTENCE.format(120 if stem == "01_far" else 40) for stem in said}
