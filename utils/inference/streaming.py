"""An answer piece by piece while the model writes it: with a time-out, a way to stop it, and errors that arrive.

``model.generate`` runs in a thread and puts text into transformers' TextIteratorStreamer; :class:`TextStream` reads it.
The usual recipe, a bare ``Thread(target=model.generate)``, waits for ever when generate fails: the exception ends the
thread, and nobody tells the reader that no more text will come.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from utils.data.chat import render
from utils.inference.serving import for_request
from utils.lora.refusals import check_count
from utils.models.context import positions, room_for_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StreamFailed(RuntimeError):
    """generate failed in its thread. The error that it raised is the ``__cause__``."""


class StreamTimeout(TimeoutError):
    """No text came in time."""


class TextStream:
    """The model's answer to one prompt in chat form, as an iterator of pieces of text.

    Use it in a ``with`` block, which stops the model when the reader leaves early; ``"".join(stream)`` is the whole
    answer. `timeout` is the longest wait for the next piece in seconds; it must be longer than the model needs for its
    prompt. `settings` go to ``model.generate`` (greedy unless they say otherwise; ``stop_strings`` too).

    The stream keeps the adapter that is active when it is made: it runs on the model's tensors, with modules of its own
    (:func:`utils.inference.serving.for_request`), so several streams can go on under several adapters.

    Iterating raises StreamFailed, with generate's own error as its cause, and StreamTimeout when no piece came in
    `timeout` seconds; either ends the stream. Making one raises ValueError for an empty prompt, one that leaves no room
    in the model's positions, a `timeout` that isn't above 0 or a `max_new_tokens` below 1. A thread can't be ended from
    outside: after :meth:`cancel` or a time-out the model still finishes the token that it is at.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        timeout: float = 30.0,
        **settings: Any,
    ) -> None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"there is nothing to answer: the prompt is {prompt!r}")
        if not timeout or not timeout > 0:
            raise ValueError(f"timeout is a number of seconds above 0, not {timeout}: without one the reader can hang")
        check_count("max_new_tokens", max_new_tokens)
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        if isinstance(model, torch.nn.Module):
            model = for_request(model)
        self.timeout = timeout
        self.error: BaseException | None = None
        self._cancelled = threading.Event()
        self._ended = False
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=timeout, skip_special_tokens=True)
        inputs = tokenizer(
            render(tokenizer, prompt), add_special_tokens=False, return_tensors="pt", return_token_type_ids=False,
            verbose=False,
        ).to(model.device)  # fmt: skip
        max_new_tokens = room_for_answer(inputs.input_ids.shape[1], max_new_tokens, positions(model))
        criteria = StoppingCriteriaList([*settings.pop("stopping_criteria", []), self._stop])
        arguments = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id} | settings
        arguments |= {"max_new_tokens": max_new_tokens, "stopping_criteria": criteria, "streamer": self._streamer}
        if arguments.get("stop_strings"):
            arguments["tokenizer"] = tokenizer  # generate looks up which tokens can make the strings
        self._thread = threading.Thread(target=self._run, args=(model, {**inputs, **arguments}), daemon=True)
        self._thread.start()

    def _stop(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """transformers' StoppingCriteria: called after every token."""
        return torch.full((len(ids),), self._cancelled.is_set(), dtype=torch.bool, device=ids.device)

    def _run(self, model: Any, arguments: dict[str, Any]) -> None:
        try:
            model.generate(**arguments)
        except BaseException as error:  # whatever it was, the reader must hear of it
            self.error = error
        finally:
            self._streamer.text_queue.put(self._streamer.stop_signal)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._ended:
            try:
                piece = next(self._streamer)
            except StopIteration:
                break
            except queue.Empty:
                self._ended = True
                self.cancel(wait=False)
                raise StreamTimeout(
                    f"the model wrote nothing for {self.timeout:g} seconds: it hangs, or the prompt is long; then pass "
                    "a larger timeout"
                ) from None
            if piece:
                return piece
        ended, self._ended = self._ended, True
        if not ended:
            self._thread.join(self.timeout)
            if self.error is not None:
                raise StreamFailed(f"generate failed: {type(self.error).__name__}: {self.error}") from self.error
        raise StopIteration

    def cancel(self, wait: bool = True) -> None:
        """Ask the model to stop after the token that it is at; with `wait`, wait for that, at most `timeout` seconds.

        What was written and not read yet can still be read.
        """
        self._cancelled.set()
        if wait:
            self._thread.join(self.timeout)

    @property
    def running(self) -> bool:
        """Whether the model is still at work."""
        return self._thread.is_alive()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
