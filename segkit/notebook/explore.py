"""Explorers: a figure that follows sliders in JupyterLab and is a row of pictures everywhere else.

A drawing function draws one state of a question; `explore` shows it. In a live kernel, sliders redraw it.
Under papermill, nbconvert and nbval there is nobody to move a slider: there, and so on GitHub too, chosen
states stand beside each other in one PNG, the static twin.
"""

import base64
import html
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from segkit.notebook import plots

State = dict[str, Any]


def is_live() -> bool:
    """Whether somebody can move a slider; where SEGKIT_STATIC is set, it decides (1: no, 0: yes)."""
    if choice := os.environ.get("SEGKIT_STATIC"):
        return choice == "0"
    # No public name tells the two apart, but only a live front end can answer input().
    return bool(getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False))


def _label(state: State) -> str:
    return ", ".join(f"{name} {value}" for name, value in state.items())


def _checked(
    draw: Callable, twin: Sequence[Mapping], controls: Mapping[str, Sequence]
) -> tuple[State, list[State]]:
    """The default state, and the twin's states filled up from it."""
    parameters = inspect.signature(draw).parameters
    default = {}
    for name, options in controls.items():
        if name not in parameters:
            raise ValueError(f"draw has no argument {name!r}; it has {', '.join(parameters)}")
        given = parameters[name].default
        default[name] = options[0] if given is inspect.Parameter.empty else given
    if not 1 <= len(controls) <= 3:
        raise ValueError(f"an explorer asks one question with one to three controls, not {len(controls)}")
    states = [{**default, **state} for state in twin]
    for state in [default, *states]:
        for name, value in state.items():
            if name not in controls or value not in controls[name]:
                raise ValueError(f"{name}={value!r} is not among the controls {dict(controls)}")
    if not states:
        raise ValueError("twin is empty: name the states to show where there are no sliders")
    return default, states


def static_twin(draw: Callable, states: Sequence[State], *, inches: float, columns: int) -> Figure:
    """The states as small multiples, each under what tells it from the others."""
    names = [name for name in states[0] if any(state[name] != states[0][name] for state in states)] or list(
        states[0]
    )
    rows, title = math.ceil(len(states) / columns), 0.3
    figure = Figure(figsize=(plots.WIDTH, rows * (inches / columns + title)))
    cells = figure.subfigures(rows, columns, squeeze=False).flat
    for cell, state in zip(cells, states, strict=False):
        above, below = cell.subfigures(2, 1, height_ratios=[title, inches / columns])
        above.text(
            0.5, 0.4, _label({name: state[name] for name in names}), ha="center", va="center", weight="bold"
        )
        draw(below, **state)
    return figure


def _control(name: str, options: Sequence, value: object) -> ipywidgets.Widget:
    """A slider, or buttons where the options are words."""
    words = any(isinstance(option, str) for option in options)
    kind = ipywidgets.ToggleButtons if words else ipywidgets.SelectionSlider
    return kind(options=[(str(option), option) for option in options], value=value, description=name)


def live_box(
    draw: Callable, default: State, *, alt: str, inches: float, controls: Mapping
) -> ipywidgets.VBox:
    """Sliders over a picture; a state once drawn is kept."""
    drawn: dict[tuple, bytes] = {}
    widgets = {name: _control(name, options, default[name]) for name, options in controls.items()}
    picture = ipywidgets.HTML()

    def redraw(_=None) -> None:
        state = {name: widget.value for name, widget in widgets.items()}
        key = tuple(state.values())
        if key not in drawn:
            figure = Figure(figsize=(plots.WIDTH, inches))
            try:
                draw(figure, **state)
                drawn[key] = plots.png(figure, small=False)
            except Exception as error:  # an error in a callback would go to a log that nobody reads
                picture.value = f"<pre>{html.escape(f'{type(error).__name__}: {error}')}</pre>"
                return
        text = html.escape(f"{alt} Shown: {_label(state)}.", quote=True)
        data = base64.b64encode(drawn[key]).decode()
        picture.value = f'<img style="max-width:100%" alt="{text}" src="data:image/png;base64,{data}">'

    for widget in widgets.values():
        widget.observe(redraw, names="value")
    redraw()
    box = ipywidgets.VBox([ipywidgets.HBox(list(widgets.values())), picture])
    box.add_class("segkit-explorer")
    return box


def explore(
    draw: Callable[..., None],
    *,
    twin: Sequence[Mapping[str, object]],
    alt: str,
    inches: float = 3.0,
    twin_columns: int = 1,
    **controls: Sequence,
) -> None:
    """Shows a figure that answers one question in many states.

    Args:
        draw: `draw(figure, **state)` draws one state into an empty figure (or a part of one, so it uses
            `figure.subplots`, sets its margins by `gridspec_kw`, and never saves or shows). It only draws:
            what it needs is computed before. The defaults of its arguments are the state shown first; where
            there is none, the first option is.
        twin: the states to draw where there are no sliders; what a state leaves out is as in the default.
        alt: a sentence that says what the figure shows.
        inches: height of one state at the full width of 9 inches.
        twin_columns: states beside each other in the twin, drawn smaller accordingly.
        controls: by argument of `draw`, the options to choose from: words become buttons, the rest sliders.

    Raises:
        ValueError: if a state is not among the options, or there are no or more than three controls.
    """
    default, states = _checked(draw, twin, controls)
    if not is_live():
        plots.emit(plots.png(static_twin(draw, states, inches=inches, columns=twin_columns)), alt)
        return
    display(live_box(draw, default, alt=alt, inches=inches, controls=controls))
