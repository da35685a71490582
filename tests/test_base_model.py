"""The shipped files are what they are said to be: the base's gates, the adapters' bars, and how the base is trained."""

import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from tools import train_tiny_base
from utils import models, tinyworld
from utils.evaluate import gates, metrics
from utils.lora import lora_layers
from utils.lora.checkpoint import CONFIG, WEIGHTS, load_adapter
from utils.tinyworld import TASKS, task_examples, unseen_word_examples
from utils.train.adapter_cache import adapter_dir
from utils.train.recipes import HELD_OUT, RECIPES

torch.set_num_threads(1)

RECORD = json.loads((models.TINY_DIR / "training.json").read_text(encoding="utf-8"))
TASK_RECORD = models.ASSETS / "measurements" / "tasks.json"
BARS = {"sentiment": 0.95, "style": 0.95, "translation": 0.90, "summarization": 0.90}
ONE_POINT = 0.01 + 1e-9
"""Two of 200 answers: a tie between two tokens may fall otherwise on another processor."""


@pytest.fixture(scope="module")
def loaded():
    return models.load_base()


@pytest.fixture(scope="module")
def measured():
    """The record of the shipped adapters."""
    return json.loads(TASK_RECORD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def requested_stories(loaded):
    """200 requests with their heroes and the stories that were told; sampled, so they take ten seconds once."""
    requests = gates.story_requests(200)
    return requests, gates.tell_stories(*loaded, [r for r, _ in requests])


def test_stories_are_told_by_seed_0_and_at_the_temperature_of_the_record(loaded, monkeypatch):
    monkeypatch.setattr(gates, "complete", lambda *_, **settings: [torch.rand(3).tolist(), settings["temperature"]])
    usual, other = gates.tell_stories(*loaded, []), gates.tell_stories(*loaded, [], seed=1)
    assert usual == gates.tell_stories(*loaded, [], temperature=0.7, seed=0) != other
    assert usual[1] == 0.7


# ---------------------------------------------------------------------------------------------------- the files


def test_the_base_with_its_tokenizer_is_at_most_5_mb():
    assert sum(f.stat().st_size for f in models.TINY_DIR.rglob("*") if f.is_file()) <= 5_000_000


def test_the_weights_are_bf16_safetensors_and_the_head_is_not_stored_twice():
    with safe_open(models.TINY_DIR / "model.safetensors", "pt") as file:
        tensors = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        assert {t.get_dtype() for t in tensors.values()} == {"BF16"}
        stored = {key: t.get_shape() for key, t in tensors.items()}
    assert "lm_head.weight" not in stored and stored["model.embed_tokens.weight"] == [1024, 192]
    assert not list(models.TINY_DIR.glob("*.bin"))


def test_it_is_the_llama_of_the_plan(loaded):
    model, tokenizer = loaded
    c = model.config
    assert (c.model_type, c.hidden_size, c.num_hidden_layers, c.intermediate_size) == ("llama", 192, 4, 512)
    assert (c.num_attention_heads, c.num_key_value_heads, c.vocab_size) == (6, 2, 1024)
    assert c.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 1_771_200 == RECORD["parameters"]
    for parameter in model.parameters():
        assert all(width % 64 == 0 for width in parameter.shape), "4-bit blocks of 64 wouldn't fit"
    assert len(tokenizer) == 1024
    assert (tokenizer.eos_token, tokenizer.pad_token) == (tinyworld.END, tinyworld.PAD)
    assert (c.eos_token_id, c.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_any_text_survives_the_tokenizer(loaded):
    tokenizer = loaded[1]
    for text in ("Zoe dort près de la forêt.", "  two  spaces\n", "日本 🙂", '"No!" said Ted.', "ARR\t1,000"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    for mark in (tinyworld.USER, tinyworld.ASSISTANT, tinyworld.END, tinyworld.PAD):
        assert len(tokenizer(mark, add_special_tokens=False).input_ids) == 1


def test_the_shipped_config_and_template_are_the_training_scripts(loaded):
    model, tokenizer = loaded
    ours = train_tiny_base.config()
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "rms_norm_eps"):
        assert getattr(model.config, key) == getattr(ours, key)
    assert tokenizer.chat_template == train_tiny_base.CHAT_TEMPLATE


def test_the_model_card_says_what_was_recorded():
    card = (models.TINY_DIR / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card and "python -m tools.train_tiny_base" in card
    for text in (f"{RECORD['parameters']:,}", f"{RECORD['documents']:,}", f"{RECORD['tokens']:,}", RECORD["hardware"]):
        assert text in card
    assert f"| {RECORD['perplexity']} |" in card
    assert f"| {RECORD['copy_accuracy']:.1%} |" in card and f"| {RECORD['hero_accuracy']:.1%} |" in card
    assert all(story in card for _, story in RECORD["samples"])


# ---------------------------------------------------------------------------------------------------------- the gates


def test_gate_copying(loaded):
    accuracy = gates.copy_accuracy(*loaded)
    assert accuracy >= 0.95
    # 2,000 tokens and more; a few ties may fall otherwise on another processor.
    assert accuracy == pytest.approx(RECORD["copy_accuracy"], abs=0.005)


def test_the_copy_gate_is_not_met_by_a_model_that_cannot_copy(loaded):
    torch.manual_seed(0)
    untrained = LlamaForCausalLM(loaded[0].config).eval()
    assert gates.copy_accuracy(untrained, loaded[1], n=5) < 0.05


def test_gate_the_hero_is_kept(requested_stories):
    requests, stories = requested_stories
    kept = sum(gates.keeps_hero(s, name) for s, (_, name) in zip(stories, requests, strict=True)) / len(requests)
    assert len(requests) == 200 and kept >= 0.95


def test_the_hero_gate_notices_a_hero_who_is_lost():
    story = "Zoe was a fox. Zoe had a hat. {0} lost it. {0} cried. {0} met a bear. {0} slept well."
    assert gates.keeps_hero(story.format("Zoe"), "Zoe")
    assert not gates.keeps_hero(story.format("Tom"), "Zoe")
    assert not gates.keeps_hero(story.format("Zoe"), "Tom")
    assert not gates.keeps_hero("Zoey was a fox. Zoey had a hat. Zoey slept.", "Zoe")
    assert not gates.keeps_hero("", "Zoe")


def test_the_stories_make_no_slips_of_grammar(requested_stories):
    _, stories = requested_stories
    for story in stories:
        assert not re.findall(r"\b[Aa] [aeiouAEIOU]\w*|\b[Aa]n [^\W_aeiouAEIOU]\w*", story), story
        assert "  " not in story and not re.search(r" [.,!?]", story), story
    words = {w for story in stories for w in re.findall(r"[a-z]+", story)}
    assert len(words) > 150  # and they aren't one story told 200 times
    assert len(set(stories)) == len(stories)


def test_the_perplexity_on_held_out_stories_is_the_recorded_one(loaded):
    # The record was made with bf16 weights computing in float32, as here; rounding moves the fourth digit at most.
    found = metrics.perplexity(*loaded, gates.held_out_stories(400))
    assert found == pytest.approx(RECORD["perplexity"], abs=0.002)


def test_held_out_stories_are_in_the_test_split():
    stories = gates.held_out_stories(50)
    assert {tinyworld.split_of(s) for s in stories} == {"test"} and len(stories) == 50
    assert stories == gates.held_out_stories(50) != gates.held_out_stories(50, seed=1)


# --------------------------------------------------------------------------------------------------------- the adapters


@pytest.mark.parametrize("task", TASKS)
def test_the_base_knows_no_task_and_the_shipped_adapter_does(task, measured):
    """Exact match on 200 held-out prompts: the base at most 2%, the adapter at least its bar, both as recorded."""
    test = task_examples(task, "test", HELD_OUT)
    assert len(test) == 200
    model, tokenizer = models.load_base()
    before = metrics.exact_match(model, tokenizer, test)
    assert before <= 0.02
    load_adapter(model, adapter_dir(task))
    after = metrics.exact_match(model, tokenizer, test)
    assert after >= BARS[task]
    assert measured[task]["base"] == pytest.approx(before, abs=ONE_POINT)
    assert measured[task]["adapter"] == pytest.approx(after, abs=ONE_POINT)
    if task == "sentiment":  # reported beside the rest; no bar, since no word of it was taught
        unseen = metrics.exact_match(model, tokenizer, unseen_word_examples(HELD_OUT))
        assert measured[task]["unseen_words"] == pytest.approx(unseen, abs=ONE_POINT)


@pytest.mark.parametrize("task", TASKS)
def test_an_adapter_is_small_bf16_and_made_by_its_recipe(task, measured):
    folder, recipe = adapter_dir(task), RECIPES[task]
    assert {f.name for f in folder.iterdir()} == {CONFIG, WEIGHTS}
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 500_000
    assert (folder / WEIGHTS).stat().st_size == measured[task]["bytes"]
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118
    assert {key: measured[task][key] for key in recipe._asdict()} == recipe._asdict()
    model = models.load_base()[0]
    load_adapter(model, folder)
    layers = lora_layers(model)
    assert len(layers) == 4 * 7 and {(x.r, x.lora_alpha) for x in layers.values()} == {(recipe.r, recipe.lora_alpha)}
    assert json.loads((folder / CONFIG).read_text())["base_model_name_or_path"] == "tiny-llama"


# --------------------------------------------------------------------------------------------- how the base is trained

STEPS, RATE = 6, 1e-2


def tiny_model():
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=None, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def parts(loaded):
    first, rest = tinyworld.documents(20, 1, 0.8), tinyworld.documents(40, 2)
    return train_tiny_base.tokenize(loaded[1], first), train_tiny_base.tokenize(loaded[1], rest)


def fit(parts, checkpoint=None, stop_after=None, model=None, **changes):
    model = model or tiny_model()
    arguments = {"steps": STEPS, "size": 4, "lr": RATE, "seed": 1, "every": 2} | changes
    curve = train_tiny_base.fit(model, parts, checkpoint=checkpoint, stop_after=stop_after, **arguments)
    return curve, [p.detach() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(parts, tmp_path, stop):
    whole_curve, whole = fit(parts)
    checkpoint = tmp_path / "new" / "run.ckpt"
    _, stopped = fit(parts, checkpoint, stop_after=stop)
    assert not same(stopped, whole)
    torch.manual_seed(123)  # the state of the generator when it goes on is another
    curve, resumed = fit(parts, checkpoint)
    assert same(resumed, whole) and curve == whole_curve
    _, again = fit(parts, checkpoint)  # a finished run has nothing left to do
    assert same(again, whole)
    assert [f.name for f in checkpoint.parent.iterdir()] == ["run.ckpt"]


def test_a_run_killed_between_checkpoints_goes_on_from_the_last(parts, tmp_path, monkeypatch):
    _, whole = fit(parts)
    learning_rate = train_tiny_base.learning_rate

    def killed(step, steps, peak):
        if step == 5:
            raise KeyboardInterrupt
        return learning_rate(step, steps, peak)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_tiny_base, "learning_rate", killed)
        fit(parts, tmp_path / "run.ckpt")
    assert torch.load(tmp_path / "run.ckpt", weights_only=True)["step"] == 4
    assert same(fit(parts, tmp_path / "run.ckpt")[1], whole)


@pytest.mark.parametrize("changes", [{"steps": 7}, {"size": 3}, {"lr": 2e-2}, {"seed": 2}, "corpus"])
def test_another_runs_checkpoint_is_refused(parts, tmp_path, changes):
    fit(parts, tmp_path / "run.ckpt", stop_after=2)
    model = tiny_model()
    before = [p.detach().clone() for p in model.parameters()]
    corpus, changes = ((parts[0], parts[1][:-9]), {}) if changes == "corpus" else (parts, changes)
    with pytest.raises(SystemExit, match="belongs to another run.*delete it or repeat its arguments"):
        fit(corpus, tmp_path / "run.ckpt", model=model, **changes)
    assert same(model.parameters(), before)


def test_an_interrupted_write_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    train_tiny_base.save_checkpoint(path, {"step": 1})

    def half(state, file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(train_tiny_base.torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        train_tiny_base.save_checkpoint(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_training_lowers_the_loss(parts):
    texts = parts[1][: 256 * 4].view(4, 256).long()
    trained, untrained = tiny_model(), tiny_model().eval()
    fit(parts, model=trained, steps=12)
    with torch.no_grad():
        after, before = (m(input_ids=texts, labels=texts).loss.item() for m in (trained, untrained))
    assert after < before - 0.3 and not trained.training


def test_a_batch_depends_on_the_step_and_the_seed_alone(parts):
    def batch(step, seed=1):
        return train_tiny_base.batch_at(step, 100, parts, 3, seed)

    first = [batch(step) for step in range(8)]
    torch.manual_seed(99)
    random.seed(99)
    for step in (7, 3, 0, 5):  # in any order, whatever was drawn before
        assert torch.equal(batch(step), first[step])
    assert len({tuple(b.flatten().tolist()) for b in first}) == 8
    assert not torch.equal(batch(0, seed=2), first[0])
    for b in first:
        assert b.shape == (3, train_tiny_base.LENGTH) and b.dtype == torch.int64
        assert 0 <= b.min() and b.max() < train_tiny_base.VOCABULARY


def test_one_step_in_four_repeats_random_tokens(parts):
    corpus = {tuple(p[i : i + 8].tolist()) for p in parts for i in range(p.numel() - 8)}
    for step in range(24):
        row = train_tiny_base.batch_at(step, 24, parts, 2, 1)[0]
        blocks = row.view(-1, 2, 32)
        assert bool(torch.equal(blocks[:, 0], blocks[:, 1])) == (step % 4 == 3)
        assert (tuple(row[:8].tolist()) in corpus) == (step % 4 != 3)


def test_the_rate_ramps_up_and_falls_to_3_percent():
    for steps in (20, 8000):
        rates = [train_tiny_base.learning_rate(step, steps, 2e-3) for step in range(steps)]
        top = rates.index(max(rates))
        assert top == pytest.approx(min(200, steps // 10), abs=1) and max(rates) <= 2e-3
        assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
        assert 0.03 * 2e-3 <= rates[-1] < 0.05 * 2e-3
    assert train_tiny_base.learning_rate(0, 1, 1.0) > 0


def test_texts_become_one_row_with_an_end_mark_behind_each(loaded):
    tokenizer = loaded[1]
    texts = ["Zoe was a fox.", f"{tinyworld.USER}Please tell me a story.{tinyworld.ASSISTANT}Zoe was a fox."]
    row = train_tiny_base.tokenize(tokenizer, texts)
    assert row.dtype == torch.int16
    assert tokenizer.decode(row.tolist()) == "".join(text + tinyworld.END for text in texts)


def test_the_tokenizer_that_training_makes_has_the_shipped_ones_shape(tmp_path):
    texts = tinyworld.documents(400, 3)
    made = train_tiny_base.train_tokenizer(texts)
    made.save_pretrained(tmp_path)
    assert len(made) == 1024
    assert made.convert_tokens_to_ids([tinyworld.PAD, tinyworld.END, tinyworld.USER, tinyworld.ASSISTANT]) == [
        0,
        1,
        2,
        3,
    ]
    assert made.decode(made(texts[0], add_special_tokens=False).input_ids) == texts[0]
    assert made(tinyworld.END).input_ids == [train_tiny_base.END_ID]


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--batch", "0"], ["--documents", "-1"]])
def test_the_script_refuses_what_makes_no_run(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_tiny_base.py", *arguments])
    with pytest.raises(SystemExit):
        train_tiny_base.main()
    assert "must be at least 1" in capsys.readouterr().err
