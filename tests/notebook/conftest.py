"""What the tests of all figures share."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.legend import Legend


@pytest.fixture
def assert_room():
    """Call it with a figure: no axes and no legend, with all of their texts, may stick out of it."""

    def check(figure):
        renderer, frame = FigureCanvasAgg(figure).get_renderer(), figure.bbox.expanded(1.005, 1.01)
        for artist in [*figure.axes, *figure.findobj(Legend)]:
            box = artist.get_tightbbox(renderer)
            assert frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1), artist

    return check
