"""Explorers: the twin where nobody is, the sliders where somebody is."""

import base64
import io
import re

import matplotlib
import pytest
from matplotlib.figure import FigureBase
from PIL import Image

from segkit.notebook import explore as module
from segkit.notebook.explore import explore, is_live, live_box, static_twin


class Draw:
    """Remembers the states it was asked for."""

    def __init__(self):
        self.states = []

    def __call__(self, figure, *, level=8, view="error"):
        self.states.append((level, view))
        figure.subplots().plot([0, level])


LEVELS, VIEWS = (32, 16, 8, 4), ("prediction", "error")


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, as (data or widget, options)."""
    calls = []
    monkeypatch.setattr(
        "segkit.notebook.plots.display", lambda data, **options: calls.append((data, options))
    )
    monkeypatch.setattr(module, "display", lambda data, **options: calls.append((data, options)))
    return calls


def picture(box):
    return box.children[1].value


@pytest.mark.parametrize(
    ("variable", "stdin", "live"), [("", True, True), ("", False, False), ("1", True, False)]
)
def test_live_is_where_somebody_can_answer(monkeypatch, variable, stdin, live):
    class Kernel:
        _allow_stdin = stdin

    monkeypatch.setenv("SEGKIT_STATIC", variable)
    monkeypatch.setattr(module, "get_ipython", lambda: type("Shell", (), {"kernel": Kernel()}))
    assert is_live() is live


def test_not_live_in_plain_python_or_without_the_private_name(monkeypatch):
    monkeypatch.delenv("SEGKIT_STATIC", raising=False)
    assert not is_live()
    monkeypatch.setattr(module, "get_ipython", lambda: type("Shell", (), {"kernel": object()}))
    assert not is_live()
    monkeypatch.setenv("SEGKIT_STATIC", "0")
    assert is_live()


def test_headless_shows_the_twin_as_one_png_with_alternative_text(monkeypatch, shown):
    monkeypatch.setenv("SEGKIT_STATIC", "1")
    draw = Draw()
    twin = [{"level": 4}, {"level": 32, "view": "prediction"}, {}]
    explore(draw, twin=twin, alt="A line of that level.", level=LEVELS, view=VIEWS, inches=2, twin_columns=2)
    assert draw.states == [(4, "error"), (32, "prediction"), (8, "error")]
    ((data, options),) = shown
    assert set(data) == {"image/png", "text/plain"} and options["raw"] is True
    assert data["text/plain"] == "A line of that level."
    image = Image.open(io.BytesIO(data["image/png"]))
    assert image.size == (900, 2 * (100 + 30)) and "Software" not in image.info


def test_the_twin_names_what_differs():
    states = [{"level": 4, "view": "error"}, {"level": 8, "view": "error"}]
    figure = static_twin(Draw(), states, inches=2, columns=2)
    texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    assert {"level 4", "level 8"} <= set(texts)
    assert not [text for text in texts if "view" in text]


def test_live_shows_sliders_and_redraws(monkeypatch, shown):
    monkeypatch.setenv("SEGKIT_STATIC", "0")
    draw = Draw()
    explore(draw, twin=[{}], alt='Lines with "quotes".', level=LEVELS, view=VIEWS)
    ((box, _),) = shown
    level, view = box.children[0].children
    assert "segkit-explorer" in box._dom_classes
    assert (level.value, view.value) == (8, "error") and draw.states == [(8, "error")]
    first = picture(box)
    assert 'alt="Lines with &quot;quotes&quot;. Shown: level 8, view error."' in first
    png = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', first).group(1))
    assert Image.open(io.BytesIO(png)).size == (900, 300)

    level.value = 4
    assert picture(box) != first and draw.states[-1] == (4, "error")
    level.value = 8
    assert picture(box) == first and len(draw.states) == 2, "a state once drawn is kept"


def test_an_error_while_drawing_is_shown_and_not_kept():
    def draw(figure, *, level=1):
        if level == 2 and not mended:
            raise ValueError("no <two>")

    mended = False
    box = live_box(draw, {"level": 1}, alt="Nothing at all.", inches=1, controls={"level": (1, 2)})
    (slider,) = box.children[0].children
    slider.value = 2
    assert picture(box) == "<pre>ValueError: no &lt;two&gt;</pre>"
    mended = True
    slider.value = 1
    slider.value = 2
    assert picture(box).startswith("<img")


def test_controls_named_like_a_size_are_free(monkeypatch, shown):
    def draw(figure, *, height, columns):
        assert isinstance(figure, FigureBase) and (height, columns) == (1, 3)

    controls = {"height": (1, 2), "columns": (3,)}
    box = live_box(draw, {"height": 1, "columns": 3}, alt="Nothing at all.", inches=1, controls=controls)
    assert picture(box).startswith("<img")
    monkeypatch.setenv("SEGKIT_STATIC", "1")
    explore(draw, twin=[{"height": 1}], alt="Nothing at all.", **controls)
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("twin", "controls", "message"),
    [
        ([], {"level": LEVELS}, "twin is empty"),
        ([{"level": 5}], {"level": LEVELS}, "level=5 is not among"),
        ([{"size": 5}], {"level": LEVELS}, "size=5 is not among"),
        ([{}], {"zoom": (1, 2)}, "draw has no argument 'zoom'"),
        ([{}], {"level": (1, 2)}, "level=8 is not among"),
        ([{}], {}, "one to three controls, not 0"),
    ],
)
def test_wrong_states_are_refused(twin, controls, message):
    with pytest.raises(ValueError, match=message):
        explore(Draw(), twin=twin, alt="Nothing at all.", **controls)
