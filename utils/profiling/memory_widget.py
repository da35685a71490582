"""The memory predictor by hand: a few controls, and the peak of a step with its parts.

In a notebook it is made of ipywidgets. Where there are none, :func:`utils.profiling.memory.predict` is the same as a
function.
"""

from __future__ import annotations

from typing import Any

from utils.inference.playground import widgets_work
from utils.models.configs import SHAPES
from utils.profiling.fit import CARDS, fit_report, needed
from utils.profiling.memory import GB, METHODS, Setup, predict


def answer(**fields: Any) -> str:
    """The report on a :class:`utils.profiling.memory.Setup` of these fields, and the smallest card that it fits on;
    what is wrong with the fields is said, not raised.
    """
    try:
        prediction = predict(Setup(**fields))
    except (ValueError, TypeError) as error:
        return f"Can't predict: {error}"
    needs = needed(prediction.peak) / GB
    card = next((f"fits on a card of {card} GB" for card in CARDS if needs <= card), "fits on none of the usual cards")
    return f"{fit_report(prediction)}\nneeds {needs:.1f} GB with gaps and CUDA's own: {card}"


def widgets() -> Any:
    """The controls as one ipywidgets box. Raises ImportError without ipywidgets."""
    import ipywidgets as w

    controls = {
        "model": w.Dropdown(options=list(SHAPES), value="Llama-2-7B", description="model"),
        "method": w.Dropdown(options=METHODS, value="lora", description="method"),
        "r": w.BoundedIntText(value=8, min=1, max=512, description="r"),
        "batch": w.BoundedIntText(value=4, min=1, max=256, description="batch"),
        "length": w.BoundedIntText(value=512, min=1, max=32_768, description="tokens"),
        "checkpointing": w.Checkbox(value=False, description="checkpointing"),
    }
    button = w.Button(description="Predict", button_style="primary")
    text = w.Textarea(value="", disabled=True, layout=w.Layout(width="96%", height="20em"))

    def clicked(_: Any) -> None:
        button.disabled, text.value = True, "..."
        try:
            text.value = answer(**{name: control.value for name, control in controls.items()})
        finally:
            button.disabled = False

    button.on_click(clicked)
    settings = w.Box(list(controls.values()), layout=w.Layout(flex_flow="row wrap"))
    return w.VBox([settings, button, text])


def explore(live: bool | None = None) -> None:
    """Show the controls; where widgets don't work, say how to ask without them. `live` None finds out."""
    if widgets_work() if live is None else live:
        from IPython.display import display

        display(widgets())
    else:
        print('No widgets here. Ask with print(answer(model="Llama-2-7B", method="lora", batch=4, length=512))')
