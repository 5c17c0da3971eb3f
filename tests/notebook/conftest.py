"""What the tests of all figures share."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.legend import Legend
from matplotlib.text import Text

from segkit.notebook import plots


@pytest.fixture
def texts():
    """Call it with a figure: all that is written in it."""
    return lambda figure: [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture
def assert_room():
    """Call it with a figure: no axes and no legend, with all of their texts, may stick out of it."""

    def check(figure):
        renderer, frame = FigureCanvasAgg(figure).get_renderer(), figure.bbox.expanded(1.005, 1.01)
        for artist in [*figure.axes, *figure.findobj(Legend)]:
            box = artist.get_tightbbox(renderer)
            assert frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1), artist

    return check


@pytest.fixture
def assert_shows(assert_room, texts, recwarn):
    """Call it with what makes a figure and a text in it: the figure has room, and nothing warns."""

    def check(make, expected):
        figure = make()
        assert plots.png(figure, small=False).startswith(b"\x89PNG")
        assert expected in texts(figure)
        assert_room(figure)
        assert not [str(warning.message) for warning in recwarn]

    return check
