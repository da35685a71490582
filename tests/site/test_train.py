"""LoRA trained in the page: gradients and losses are Python's, and the figure is worked by keyboard and its URL."""

from __future__ import annotations

import json
import math

import pytest

from tests.site.nodes import needs_node, run
from tests.site.served import browser, needs_browser, on_a_phone, opened, served
from tools.site import golden, train_data
from utils.data.chat import Example, encode
from utils.data.labels import batches
from utils.models.loading import load_tiny
from utils.train.loop import learning_rate_factor

RECORD = json.loads(train_data.FILE.read_text(encoding="utf-8"))
EXAMPLES = [Example(RECORD["ask"] + text, answer) for text, answer in RECORD["rows"]]
RUNS = ({"r": 8, "lr": 4e-3, "steps": 20}, {"r": 3, "lr": 2e-3, "steps": 12})
RANKS = (2, 8)
# The engine's product sums up one after the other: at most one rounding, by half of 2^-23, for each of 512 + 2 terms.
PRODUCT_LIMIT = 514 * 2.0**-24
# What rounding to float32 does to a gradient it does to PyTorch's too, so the worst tensor there, against float64, sets
# the scale. Independent roundings grow with the root of how many follow each other. The engine adds up one by one;
# PyTorch has up to 16 sums beside each other, a register of AVX-512, and a sixteenth of the roundings in a row.
TIMES_PYTORCH = math.sqrt(16)


def test_the_file_is_what_its_tool_writes_and_has_the_batches_of_the_loop():
    for path, text in train_data.files().items():
        assert path.read_text(encoding="utf-8") == text, "python -m tools.site.train_data"
    tokenizer, recipe = load_tiny()[1], train_data.RECIPE
    rows = train_data.task_examples(train_data.TASK, "train", recipe.examples)
    drawn = batches(tokenizer, rows, steps=3, batch_size=recipe.batch_size, seed=train_data.SEED)
    for own, batch in zip(RECORD["batches"], drawn, strict=False):
        wanted = [prompt + answer for prompt, answer in encode(tokenizer, [EXAMPLES[row] for row in own])]
        lengths = batch["attention_mask"].sum(1)
        assert [ids[:n].tolist() for ids, n in zip(batch["input_ids"], lengths, strict=True)] == wanted


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the engine makes of Python's values."""
    file = tmp_path_factory.mktemp("train") / "cases.json"
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in encode(load_tiny()[1], EXAMPLES)]
    gradients = [golden.gradients(r) for r in RANKS]
    file.write_text(json.dumps({"gradients": gradients, "rows": rows, "runs": RUNS}), encoding="utf-8")
    return run("train_check.js", file)


def error(own: list[float], wanted: list[float]) -> float:
    return math.dist(own, wanted) / math.hypot(*wanted)


@needs_node
@pytest.mark.parametrize("number", range(len(RANKS)))
def test_every_gradient_is_that_of_float64_up_to_rounding(found, number):
    wanted, single = (golden.gradients(RANKS[number], double)["gradients"] for double in (True, False))
    rounding = max(error(single[name][part], values) for name, own in wanted.items() for part, values in own.items())
    limit = TIMES_PYTORCH * rounding
    assert limit < 5e-5
    engine = found["gradients"][number]
    assert len(engine["errors"]) == 56
    assert max(engine["errors"].values()) < limit, engine["errors"]
    assert abs(engine["loss"]) < limit


@needs_node
def test_products_are_those_of_float64_up_to_rounding(found):
    assert len(found["products"]) == 12
    assert max(found["products"]) < PRODUCT_LIMIT


@needs_node
@pytest.mark.parametrize("number", range(len(RUNS)))
def test_losses_of_a_run_are_those_of_the_loop(found, number):
    """To 1e-4 of each: 20 steps of AdamW carry a rounding on, and don't yet let it grow."""
    assert found["runs"][number]["losses"] == pytest.approx(golden.training(**RUNS[number]), rel=1e-4)


@needs_node
def test_rows_rates_and_what_is_refused(found):
    assert found["rows"] == 0
    assert found["rates"] == pytest.approx([learning_rate_factor(step, 100) for step in (0, 4, 9, 10, 60)])
    assert "has 600 tokens, and the model 512 positions" in found["refused"][0]
    assert "try a lower learning rate" in found["refused"][1]


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("site"), "train") as url, browser() as own:
        yield url, own


@pytest.fixture
def figure(site):
    """The figure on its page, with a run of 20 steps; nothing may go wrong there."""
    url, own = site
    page, wrong = opened(own, f"{url}/train-light.html#train?steps=20")
    yield page
    page.close()
    assert wrong == []


def spoken(page, words: str) -> str:
    return page.wait_for_selector(f"[role=status]:has-text('{words}')", state="attached").inner_text()


@needs_browser
@pytest.mark.slow
def test_a_short_run_by_keyboard(figure):
    """Its loss is Python's, the answer is no story any more, and the exact match of both is said."""
    figure.wait_for_selector(".train-side:first-child >> text=exact match: 0 of 40 held-out prompts")
    figure.focus(".train-start")
    figure.keyboard.press("Enter")
    assert figure.inner_text(".train-start") == "Stop"
    assert figure.is_disabled("[name=steps]")
    figure.wait_for_selector(".train[data-running=no][data-right]")
    last = golden.training(**RUNS[0])[-1]
    assert f"Done: step 20 of 20, loss {last:.3g}," in figure.inner_text(".train-status")
    told = spoken(figure, "Exact match")
    assert f"Trained to step 20 of 20: loss {last:.3g}. The adapter answers: " in told
    assert f"Exact match: the base 0, the adapter {figure.get_attribute('.train', 'data-right')} of 40." in told
    assert figure.inner_text(".train-start") == "Train again"
    base, adapter = (figure.locator(".train-answer").nth(i).inner_text() for i in (0, 1))
    assert base != adapter
    assert "at step 20" in figure.get_attribute(".train-loss [role=img]", "aria-label")


@needs_browser
@pytest.mark.slow
def test_stop_is_at_once_and_leaves_what_is_trained(figure):
    figure.click(".train-start")
    figure.wait_for_function("document.querySelector('.train').dataset.steps >= 3")
    took = figure.evaluate("""() => {
      const began = performance.now(), start = document.querySelector(".train-start");
      start.click();
      return new Promise((done) => {
        const look = () => (start.textContent === "Stop" ? setTimeout(look) : done(performance.now() - began));
        look();
      });
    }""")
    assert took < 100
    figure.wait_for_selector(".train[data-running=no][data-right]")
    steps = int(figure.get_attribute(".train", "data-steps"))
    assert 3 <= steps < 20
    assert f"Stopped at step {steps} of 20" in spoken(figure, "Stopped")
    figure.click(".train-start")
    figure.wait_for_function("document.querySelectorAll('.train-before').length === 1")
    figure.click(".train-start")
    figure.wait_for_selector(".train[data-running=no]")


@needs_browser
@pytest.mark.slow
def test_the_address_follows_and_what_cant_be_is_mended(figure):
    figure.focus("input[value='8']")
    figure.keyboard.press("ArrowRight")
    assert "217,088 numbers" in figure.inner_text(".train-controls")
    figure.focus("input[value='0.004']")
    figure.keyboard.press("ArrowLeft")
    figure.focus("[name=steps]")
    figure.keyboard.press("ArrowRight")
    figure.wait_for_function("location.hash === '#train?rank=16&lr=0.002&steps=30'")
    figure.evaluate("location.hash = 'train?rank=5&lr=9&steps=1000&prompt=Hello'")
    figure.wait_for_function("document.querySelector('textarea').value === 'Hello'")
    assert figure.is_checked("input[value='4']") and figure.is_checked("input[value='0.02']")
    assert figure.input_value("[name=steps]") == "150"


@needs_browser
@pytest.mark.slow
def test_it_fits_a_phone_and_every_control_has_a_name(site):
    url, own = site
    page, wrong = on_a_phone(own, f"{url}/train-dark.html")
    assert wrong == []
