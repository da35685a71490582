"""The mixing board says what the same mix says in Python, and is worked by keyboard and by its URL."""

from __future__ import annotations

import json
import re
import time

import pytest
import torch

from tests.site.served import browser, needs_browser, on_a_phone, opened, served
from tools.site import figure_data, golden
from utils.data.chat import Example, encode
from utils.evaluate.metrics import complete
from utils.models.loading import load_tiny
from utils.tinyworld import TASKS

pytestmark = [needs_browser, pytest.mark.slow]
DONE = ".mixing[data-scored] .mixing-answer[data-busy=no]"
PIRATE = figure_data.held_out("style", 1)[0]["prompt"]
FRENCH = figure_data.held_out("translation", 1)[0]["prompt"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("site"), "mixing") as url, browser() as own:
        yield url, own


@pytest.fixture
def board(site):
    """The figure on its page, and what went wrong there."""
    url, own = site
    page, wrong = opened(own, f"{url}/mixing-light.html")
    yield page
    page.close()
    assert wrong == []


def asked(model, prompt=PIRATE):
    return complete(model, load_tiny()[1], [prompt], max_new_tokens=40)[0]


def said(page) -> str:
    page.wait_for_function("document.querySelector('.mixing-answer').dataset.busy === 'no'")
    return page.inner_text(".mixing-answer")


def go(page, hash: str) -> None:
    page.evaluate("(hash) => { location.hash = hash; }", hash)
    page.wait_for_timeout(100)


def log_prob(model, tokenizer, rows) -> float:
    """The mean log-probability of the right answers' tokens, end-of-turn token included."""
    found = []
    for prompt, answer in encode(tokenizer, rows):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        found += logits[range(len(answer)), answer].tolist()
    return sum(found) / len(found)


def test_data_is_what_its_tool_writes():
    for path, text in figure_data.files().items():
        assert path.read_text(encoding="utf-8") == text, "python -m tools.site.figure_data"


def test_scores_are_those_of_python(board):
    model, tokenizer = golden.with_mix({"style": 1.0}, "cat"), load_tiny()[1]
    board.wait_for_selector(DONE)
    scored = json.loads(board.get_attribute(".mixing", "data-scored"))
    for task, (right, likely) in zip(TASKS, scored, strict=True):
        rows = [Example(**row) for row in figure_data.held_out(task, figure_data.MIXING)]
        answers = complete(model, tokenizer, [row.prompt for row in rows], max_new_tokens=40)
        assert right == sum(a == row.answer for a, row in zip(answers, rows, strict=True)), task
        assert likely == pytest.approx(log_prob(model, tokenizer, rows), abs=2e-3), task
    assert scored[3][0] == 8
    assert "pirate 8 of 8" in board.wait_for_selector("[role=status]:has-text('Right:')", state="attached").inner_text()


@pytest.mark.parametrize("how", ["cat", "linear", "ties", "dare_linear", "svd"])
def test_each_way_says_what_python_says(board, how):
    weights = {"sentiment": -0.5, "translation": 0.6, "style": 0.6}
    state = "&".join(f"{name}={weight}" for name, weight in weights.items())
    go(board, f"mixing?{state}&how={how}&prompt={FRENCH}")
    assert board.input_value("textarea") == FRENCH
    assert said(board) == asked(golden.with_mix(weights, how), FRENCH)


def test_keyboard_url_and_zero(board):
    """Keys move the fader, the answer and the address follow; all at 0 is the base."""
    board.focus("[data-task=style]")
    for _ in range(6):
        board.keyboard.press("ArrowDown")
    assert board.inner_text(".mixing-channel:nth-child(4) output") == "0.70"
    board.focus("[data-task=sentiment]")
    board.keyboard.press("Home")
    assert board.inner_text(".mixing-channel:nth-child(1) output") == "−1.00"
    assert said(board) == asked(golden.with_mix({"sentiment": -1.0, "style": 0.7}, "cat"))
    board.wait_for_function("location.hash === '#mixing?sentiment=-1&style=0.7'")
    board.focus("input[value=cat]")
    board.keyboard.press("ArrowRight")
    board.wait_for_function("location.hash.endsWith('how=linear')")
    board.click("text=all to 0")
    base = asked(load_tiny()[0])
    assert said(board) == base
    board.wait_for_function("(base) => document.body.innerText.includes(`The base alone: ${base}`)", arg=base)


def test_it_fits_a_phone(site):
    url, own = site
    page, wrong = on_a_phone(own, f"{url}/mixing-dark.html")
    assert wrong == []


def test_the_names_of_the_faders_are_whole_on_the_narrowest_phone(site):
    url, own = site
    page, _ = opened(own, f"{url}/mixing-light.html", width=320)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    labels = page.locator(".mixing-channel label").all()
    assert all(label.evaluate("e => e.scrollWidth <= e.parentElement.clientWidth") for label in labels)
    heights = {label.bounding_box()["height"] for label in labels}
    assert len(labels) == 4 and len(heights) == 1, "one line each"
    page.close()


SPEED = """async () => {
  const { Client } = await import("/_static/site/engine/client.js");
  const client = new Client({ base: "/_static/site/assets/tiny-llama/" });
  await client.ready;
  let tokens = 0;
  const ask = () => client.answer("Once upon a time", { onToken: () => tokens++, maxNewTokens: 60 });
  await ask();
  tokens = 0;
  const began = performance.now();
  for (let n = 0; n < 4; n++) await ask();
  return 1000 * tokens / (performance.now() - began);
}"""


def test_forty_tokens_a_second(site):
    """Measured beside PyTorch; the floor is far below, since a busy machine is slow."""
    url, own = site
    page, _ = opened(own, f"{url}/mixing-light.html")
    page.wait_for_selector(DONE)
    here = page.evaluate(SPEED)
    model, tokenizer = load_tiny()
    inputs = tokenizer("<|user|>Once upon a time<|assistant|>", return_tensors="pt")
    began = time.perf_counter()
    out = model.generate(**inputs, do_sample=False, max_new_tokens=60)
    there = (out.shape[1] - inputs.input_ids.shape[1]) / (time.perf_counter() - began)
    print(f"tokens a second: {here:.0f} in Chromium, {there:.0f} in PyTorch on {torch.get_num_threads()} threads")
    assert here > 15


def test_an_answer_is_cancelled_and_errors_have_words(site):
    url, own = site
    page, _ = opened(own, f"{url}/mixing-light.html")
    told = page.evaluate("""async () => {
      const { Client } = await import("/_static/site/engine/client.js");
      const client = new Client({ base: "/_static/site/assets/tiny-llama/" }), stop = new AbortController();
      let tokens = 0;
      const onToken = () => ++tokens === 3 && stop.abort(new Error("enough"));
      const cancelled = await client.answer("Hi", { onToken, signal: stop.signal }).catch((e) => e.message);
      const after = tokens;
      await client.answer("Hi", { maxNewTokens: 8 });
      const missing = await client.answer("Hi", { adapters: [{ name: "nobody" }] }).catch((e) => e.message);
      const nowhere = await new Client({ base: "/nowhere/" }).ready.catch((e) => e.message);
      return [cancelled, after, tokens, missing, nowhere];
    }""")
    assert told[:3] == ["enough", 3, 3]
    # of the files that are fetched together, whichever is answered first
    assert re.search(r"adapters/nobody/adapter_\S+ couldn't be fetched: the server says 404", told[3])
    assert re.search(r"nowhere/\S+ couldn't be fetched: the server says 404", told[4])
