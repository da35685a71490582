"""A small playground: type a prompt, choose an adapter, a temperature and a top-p, and see what the model says.

In a notebook it is made of ipywidgets. Where there are none (a terminal, a viewer without them) the same controls are
the arguments of a plain function, :meth:`Playground.ask`. The choice "base" switches the adapters off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from utils.evaluate.metrics import complete
from utils.inference.serving import BASE, for_request
from utils.notebook import in_notebook

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Playground:
    """A PEFT model with its adapters, and the settings to ask it with. A model without adapters offers "base" only."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.adapters: tuple[str, ...] = (BASE, *getattr(model, "peft_config", {}))

    def answer(
        self,
        prompt: str,
        adapter: str = BASE,
        temperature: float = 0.0,
        top_p: float = 1.0,
        *,
        max_new_tokens: int = 48,
        seed: int | None = 0,
    ) -> str:
        """What the model says under `adapter`. Temperature 0 is greedy; above it, tokens are drawn, by `seed` unless
        that is None.

        The model, its active adapter and PyTorch's random state are left as they were. Raises ValueError for an empty
        prompt, one longer than the model has positions, an unknown adapter, a temperature below 0 or a top_p outside of
        (0, 1].
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("the prompt is empty: type something to answer")
        if adapter not in self.adapters:
            raise ValueError(f"there is no adapter {adapter!r}: choose among {', '.join(self.adapters)}")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature is 0 (greedy) or above, not {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is above 0 and at most 1, not {top_p}")
        sampling: dict[str, Any] = {}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "top_k": 0}
        with torch.random.fork_rng():
            if seed is not None:
                torch.manual_seed(seed)
            return self._complete(prompt, adapter, max_new_tokens, sampling)

    def _complete(self, prompt: str, adapter: str, max_new_tokens: int, sampling: dict[str, Any]) -> str:
        model = for_request(self.model, adapter)
        return complete(model, self.tokenizer, [prompt], max_new_tokens=max_new_tokens, **sampling)[0]

    def ask(
        self, prompt: str, adapter: str = BASE, temperature: float = 0.0, top_p: float = 1.0, **settings: Any
    ) -> None:
        """Print what :meth:`answer` gives; what the settings lack or exceed is printed as well, not raised."""
        print(self._said(prompt, adapter, temperature, top_p, **settings))

    def _said(self, *arguments: Any, **settings: Any) -> str:
        try:
            return self.answer(*arguments, **settings) or "(the model ended at once)"
        except ValueError as error:
            return f"Can't answer: {error}"

    def widgets(self, prompt: str = "") -> Any:
        """The controls as one ipywidgets box, with `prompt` typed in. Raises ImportError without ipywidgets."""
        import ipywidgets as w

        wide = w.Layout(width="96%")
        whole = {"description_width": "initial"}  # else "temperature" is cut off
        text = w.Textarea(value=prompt, placeholder="a prompt", layout=wide)
        adapter = w.Dropdown(options=self.adapters, value=self.adapters[-1], description="adapter")
        temperature = w.FloatSlider(value=0.0, min=0.0, max=2.0, step=0.1, description="temperature", style=whole)
        top_p = w.FloatSlider(value=1.0, min=0.05, max=1.0, step=0.05, description="top-p", style=whole)
        button = w.Button(description="Answer", button_style="primary")
        answer = w.Textarea(value="", disabled=True, layout=wide)

        def clicked(_: Any) -> None:
            button.disabled, answer.value = True, "..."
            try:
                answer.value = self._said(text.value, adapter.value, temperature.value, top_p.value, seed=None)
            finally:
                button.disabled = False

        button.on_click(clicked)
        settings = w.Box([adapter, temperature, top_p], layout=w.Layout(flex_flow="row wrap"))
        return w.VBox([text, settings, button, answer])


def playground(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str = "", *, live: bool | None = None
) -> Playground:
    """Show a playground and return it; where widgets don't work, say how to ask without them.

    `live` None finds out: widgets are shown under a Jupyter kernel with ipywidgets installed.
    """
    made = Playground(model, tokenizer)
    if widgets_work() if live is None else live:
        from IPython.display import display

        display(made.widgets(prompt))
    else:
        names = ", ".join(made.adapters)
        print(f"No widgets here. Ask with play.ask(prompt, adapter, temperature, top_p); adapters: {names}")
    return made


def widgets_work() -> bool:
    """Whether there is a kernel that a front end talks to, and the package."""
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return False
    return in_notebook()
