"""The loss mask has the ids and labels that utils.data makes, under the chat templates that TRL ships."""

from __future__ import annotations

import json
import re
from itertools import groupby

import pytest
from transformers import DataCollatorForLanguageModeling

from tests.site.nodes import needs_node, run
from tests.site.served import browser, needs_browser, on_a_phone, opened, served
from tools.site import golden
from utils.data import INSTRUCTIONS, assistant_labels, prompt_completion_labels, read_records, to_messages
from utils.data.chat import IGNORED, render
from utils.models import TINY_DIR


@pytest.fixture(scope="module")
def rows():
    return golden.masks(50)


@needs_node
def test_ids_and_labels_are_those_of_utils_data(rows, tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps(rows), encoding="utf-8")
    found = run("mask_check.js", TINY_DIR / "tokenizer.json", tmp_path / "cases.json")
    assert len(found) == len(rows) == 150
    for row, own in zip(rows, found, strict=True):
        if "refused" in row:
            assert own["refused"] in row["refused"]
        else:
            assert own == {name: row[name] for name in ("ids", "text", "labels")}, row["messages"]
    refused = [row["template"] for row in rows if "refused" in row]
    assert refused == ["tiny"] * 13  # those with a system message


def test_the_models_own_templates_write_what_trls_copies_write(rows):
    for name, group in groupby(rows, lambda row: row["template"]):
        own = golden.with_chat_template(name, training=False)
        for row in group:
            assert "refused" in row or render(own, row["messages"], open_turn=False) == row["text"]


def test_eos_masked_is_what_a_collator_does_whose_padding_is_eos(rows):
    row = next(row for row in rows if row["template"] == "chatml")
    tokenizer = golden.with_chat_template("chatml")
    tokenizer.pad_token = tokenizer.eos_token
    made = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": row["ids"]}])
    assert made["labels"][0].tolist() == row["labels"]["all, EOS masked"] != row["labels"]["all"]


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("site"), "mask") as url, browser() as own:
        yield url, own


@pytest.fixture
def figure(site):
    """The figure on its page; nothing may go wrong there."""
    url, own = site
    page, wrong = opened(own, f"{url}/mask-light.html")
    yield page
    page.close()
    assert wrong == []


def talk(*rounds: tuple[str, str], system: str = "") -> list[dict[str, str]]:
    found = [{"role": "system", "content": system}] if system else []
    for asked, answered in rounds:
        found += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return found


def shows(page, template: str, labels: list[int], ids: list[int]) -> None:
    """The tokens, labels and sentences are those of a row of Python's."""
    tokenizer = golden.with_chat_template(template)
    assert json.loads(page.get_attribute(".mask", "data-ids")) == ids
    assert json.loads(page.get_attribute(".mask", "data-labels")) == labels
    under = [text.replace("\u2212", "-") for text in page.locator(".mask-id").all_inner_texts()]
    assert list(map(int, under)) == labels
    kinds = page.locator(".mask-turn li").evaluate_all("(all) => all.map((e) => e.classList.contains('mask-label'))")
    assert kinds == [label != IGNORED for label in labels]
    ends = page.locator(".mask-turn li").evaluate_all("(all) => all.map((e) => e.classList.contains('mask-eos'))")
    assert ends == [token == tokenizer.eos_token_id for token in ids]
    learned = [label for label in labels if label != IGNORED]
    assert page.inner_text(".mask-summary").startswith(f"Labels on {len(learned)} of {len(ids)} tokens: ")
    runs = [[*group] for kind, group in groupby(labels, lambda label: label != IGNORED) if kind]
    told = page.locator(".mask-learned li").evaluate_all("(all) => all.map((e) => e.textContent)")
    assert told == [tokenizer.decode(run).replace("\n", "\u23ce") for run in runs]


@needs_browser
@pytest.mark.slow
def test_it_begins_with_the_chapters_records_and_is_worked_by_keyboard(figure):
    train = read_records(INSTRUCTIONS / "train.jsonl")
    first, second = (to_messages(train[i])["messages"] for i in (3, 0))
    tiny = golden.with_chat_template("tiny")
    ids, labels = assistant_labels(tiny, first)
    shows(figure, "tiny", labels, ids)
    figure.press("[type=checkbox] >> nth=1", " ")
    ids, labels = assistant_labels(tiny, [*first, *second])
    shows(figure, "tiny", labels, ids)
    assert figure.inner_text(".mask-stops") == "2 of 2 EOS tokens have a label: the model learns where to stop."
    figure.focus("input[value=tiny]")
    figure.keyboard.press("ArrowRight")
    chatml = golden.with_chat_template("chatml")
    ids, labels = assistant_labels(chatml, [*first, *second])
    shows(figure, "chatml", labels, ids)
    figure.focus("input[value=answers]")
    figure.keyboard.press("ArrowRight")
    ids, labels = prompt_completion_labels(chatml, {"messages": [*first, *second]})
    shows(figure, "chatml", labels, ids)
    figure.focus("input[value=kept]")
    figure.keyboard.press("ArrowRight")
    masked = [IGNORED if label == chatml.eos_token_id else label for label in labels]
    shows(figure, "chatml", masked, ids)
    assert "None of the 5 EOS tokens has a label: nothing teaches" in figure.inner_text(".mask-stops")
    figure.wait_for_function("location.hash === '#mask?template=chatml&mask=last&eos=masked&turns=2'")
    told = figure.wait_for_selector("[role=status]:has-text('None of the 5')", state="attached").inner_text()
    assert re.match(r"Labels on \d+ of \d+ tokens: the last answer. None of", told)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("template", golden.CHAT_TEMPLATES)
def test_words_of_ones_own_come_back_from_the_address(figure, template):
    tokenizer = golden.with_chat_template(template)
    system = "" if template == "tiny" else "Kurz, bitte."
    asked, answered = "Où est 👩‍👧?\n\nSay <|end|> & 100%", "  Là\u3000-bas ☠️ \n"
    if system:
        figure.press("[type=checkbox] >> nth=0", " ")
        figure.get_by_label("System", exact=True).fill(system)
    figure.press(f"input[value={template}]", " ")
    figure.get_by_label("User", exact=True).fill(asked)
    figure.get_by_label("Assistant", exact=True).fill(answered)
    ids, labels = assistant_labels(tokenizer, talk((asked, answered), system=system))
    shows(figure, template, labels, ids)
    figure.wait_for_function("location.hash.includes('answer=')")
    figure.reload()
    figure.wait_for_selector("body[data-mounted=yes]")
    shows(figure, template, labels, ids)
    assert figure.get_by_label("Assistant", exact=True).input_value() == answered


@needs_browser
@pytest.mark.slow
def test_a_record_that_cant_be_used_is_refused_in_words(figure):
    figure.evaluate("location.hash = 'mask?system=1'")
    figure.wait_for_selector("text=the tiny model knows the roles user and assistant, not system")
    assert figure.locator(".mask-turn li:visible").count() == 0
    figure.wait_for_selector("[role=status]:has-text('not system')", state="attached")
    figure.press("input[value=llama3]", " ")
    system = talk(("Say it like a pirate: Emma loved to play in the forest.", "\u2003"), system="Be brief.")
    figure.get_by_label("Assistant", exact=True).fill(system[-1]["content"])
    figure.wait_for_selector("text=the field “Assistant” is empty")
    with pytest.raises(ValueError, match="is empty"):
        assistant_labels(golden.with_chat_template("llama3"), system)
    figure.get_by_label("Assistant", exact=True).fill("Arr!")
    ids, labels = assistant_labels(
        golden.with_chat_template("llama3"), [*system[:-1], {"role": "assistant", "content": "Arr!"}]
    )
    shows(figure, "llama3", labels, ids)


@needs_browser
@pytest.mark.slow
def test_what_the_address_cant_mean_is_mended(figure):
    figure.evaluate(f"location.hash = 'mask?template=gpt&mask=constructor&eos=3&turns=9&system=2&user={'x' * 999}'")
    figure.wait_for_function("document.querySelector('[name=user]').value.length === 300")
    chosen = figure.locator("input[type=radio]:checked").evaluate_all("(all) => all.map((e) => e.value)")
    assert chosen == ["tiny", "answers", "kept"]
    assert figure.locator("[type=checkbox]:checked").count() == 0


@needs_browser
@pytest.mark.slow
def test_it_fits_a_phone_and_every_control_has_a_name(site):
    url, own = site
    page, wrong = on_a_phone(own, f"{url}/mask-dark.html#mask?template=llama3&turns=2&system=1&answer={'W' * 300}")
    page.close()
    assert wrong == []
