"""A run watched while it trains: growing curves in JupyterLab, a line an epoch everywhere else."""

import time
from collections.abc import Mapping
from typing import Any

from IPython.display import display

from segkit.notebook import plots
from segkit.notebook.explore import is_live

EVERY = 2.0  # seconds between two drawings, each of which takes a quarter of one


class Watch:
    """Follows a run through the callbacks of `segkit.training.train`.

        watch = Watch({"always road": 0.019})
        run = train(recipe, on_step=watch.step, on_epoch=watch.epoch)

    Args:
        baselines: mIoU (0 to 1) by name, drawn as dashed lines.
    """

    def __init__(self, baselines: Mapping[str, float]) -> None:
        self.baselines = baselines
        self.steps: list[Mapping[str, Any]] = []
        self.epochs: list[Mapping[str, Any]] = []
        self._handle = None
        self._drawn = 0.0

    def step(self, entry: Mapping[str, Any]) -> None:
        """Takes a step's log entry."""
        self.steps.append(entry)
        if is_live() and time.monotonic() - self._drawn > EVERY:
            self._draw()

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Takes an epoch's log entry."""
        self.epochs.append(entry)
        if is_live():
            self._draw()
            return
        miou = f", mIoU {100 * entry['miou']:.1f} %" if entry.get("miou") is not None else ""
        print(f"epoch {entry['epoch'] + 1}, step {entry['step']}: loss {entry['loss']:.2f}{miou}", flush=True)

    def _draw(self) -> None:
        figure = plots.curves(self.steps, self.epochs, self.baselines)
        data = {
            "image/png": plots.png(figure, small=False),
            "text/plain": "Training loss and validation mIoU so far.",
        }
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
        self._drawn = time.monotonic()
