"""Headless, a line an epoch and no picture; live, one picture that is redrawn."""

import pytest

from segkit.notebook import watch as module
from segkit.notebook.watch import Watch

STEPS = [{"epoch": 0, "step": step, "loss": 3.0 / step} for step in range(1, 5)]
EPOCH = {"epoch": 0, "step": 4, "loss": 1.5625, "miou": 0.1234}


class Handle:
    def __init__(self):
        self.updates = []

    def update(self, data, *, raw):
        assert raw
        self.updates.append(data)


@pytest.fixture
def shown(monkeypatch):
    handles = []

    def display(data, *, raw, display_id):
        assert raw and display_id and data["image/png"].startswith(b"\x89PNG")
        handles.append(Handle())
        return handles[-1]

    monkeypatch.setattr(module, "display", display)
    return handles


def follow(watch):
    for step in STEPS:
        watch.step(step)
    watch.epoch(EPOCH)


def test_headless_prints_a_line_an_epoch(monkeypatch, shown, capsys):
    monkeypatch.setenv("SEGKIT_STATIC", "1")
    watch = Watch({})
    follow(watch)
    watch.epoch({"epoch": 1, "step": 8, "loss": 1.0})  # nothing was measured after this one
    assert capsys.readouterr().out == "epoch 1, step 4: loss 1.56, mIoU 12.3 %\nepoch 2, step 8: loss 1.00\n"
    assert shown == []


def test_live_redraws_one_picture(monkeypatch, shown, capsys):
    monkeypatch.setenv("SEGKIT_STATIC", "0")
    monkeypatch.setattr(module, "EVERY", 0.0)
    follow(Watch({"always road": 0.02}))
    (handle,) = shown
    assert len(handle.updates) == 4  # three steps after the first, and the epoch
    assert capsys.readouterr().out == ""
