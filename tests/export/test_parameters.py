"""What a Modelfile's parameters may be: the edges of every range, and that what is read is what was written."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from utils.export.parameters import PARAMETERS, fault, read_value

EDGES = {
    "num_ctx": ([1, 131_072], [0, -1, 2**31]),
    "repeat_last_n": ([-1, 0, 64], [-2]),
    "repeat_penalty": ([0.9, 1, 1.1], [0, 0.0, -1, 1e39]),
    "temperature": ([0, 0.8, 2], [-0.1, 1e39]),
    "seed": ([-1, 0, 2**63 - 1], [2**63, -(2**63) - 1]),
    "stop": (["x"], ["", 5, b"x"]),
    "num_predict": ([-1, 0, 42], [-2]),
    "draft_num_predict": ([0, 4], [-1]),
    "top_k": ([0, 40], [-1]),
    "top_p": ([0, 0.9, 1], [-0.1, 1.1, 5]),
    "min_p": ([0, 0.05, 1], [-0.1, 1.1]),
    "typical_p": ([0, 1], [2]),
    "num_keep": ([-1, 5], [-2]),
    "presence_penalty": ([-2, 2.5], []),
    "frequency_penalty": ([-2, 2.5], []),
    "num_batch": ([1], [0]),
    "num_gpu": ([-1, 0, 99], [-2]),
    "main_gpu": ([0], [-1]),
    "num_thread": ([0, 8], [-1]),
    "use_mmap": ([True, False], [0, 1]),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_edges_of_each_range(name):
    fine, beyond = EDGES[name]
    assert [value for value in fine if fault(name, value)] == []
    beyond = [*beyond, None, [1]] + ["1"] * (name != "stop")
    beyond += [True] * (name != "use_mmap") + [math.nan, math.inf, -math.inf]
    assert [value for value in beyond if not fault(name, value)] == []
    assert all(PARAMETERS[name].words in str(fault(name, value)) for value in beyond)


def test_every_parameter_has_its_edges():
    assert EDGES.keys() == PARAMETERS.keys()


@given(name=st.sampled_from(sorted(PARAMETERS)), value=st.integers() | st.floats() | st.booleans() | st.text())
@example(name="frequency_penalty", value=2**53 + 1)
def test_what_is_taken_is_read_again_as_it_was_written(name, value):
    """A whole number where Ollama has a float becomes the nearest one."""
    if fault(name, value) is None:
        written = str(value).lower() if isinstance(value, bool) else str(value)
        assert read_value(name, written) == PARAMETERS[name].kind(value)


@pytest.mark.parametrize(
    "name, text", [("seed", "1.0"), ("seed", "1_0"), ("top_p", "\u0661"), ("top_p", ""), ("use_mmap", "yes")]
)
def test_what_go_doesnt_read_isnt_read(name, text):
    with pytest.raises(ValueError):
        read_value(name, text)
