"""The figures: one style, PNG with alternative text, drawing functions that only draw.

Importing this module sets the style: a seaborn theme, a font that every machine with matplotlib has (so that
texts take the same room everywhere) and a palette that color-blind readers can tell apart. A drawing function
takes data and returns a `Figure`; `show` puts it into the notebook. Fractions come in, percent is drawn.
"""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from segkit.data.labels import LabelSpace

COLORS = seaborn.color_palette("colorblind").as_hex()
BLUE, ORANGE, GREEN, RED = COLORS[0], COLORS[1], COLORS[2], COLORS[3]
GREY = "#5f5f5f"
WIDTH = 9.0  # inches; at 100 dpi the width of a notebook's column

seaborn.set_theme(
    context="notebook",
    style="whitegrid",
    palette="colorblind",
    font="DejaVu Sans",
    rc={
        "figure.dpi": 100,
        "savefig.dpi": 100,
        "font.size": 10,
        "axes.labelsize": 10,
        "axes.titlesize": 10.5,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "legend.fontsize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#e4e4e4",
    },
)


# Showing ------------------------------------------------------------------------------------------


def new_figure(height: float, *, width: float = WIDTH) -> Figure:
    """An empty figure in inches, outside pyplot, so that nothing shows it twice or keeps it alive."""
    return Figure(figsize=(width, height), layout="constrained")


def margins(figure: FigureBase, *, left: float, right: float, bottom: float, top: float) -> dict[str, float]:
    """Free edges, given in inches, as `gridspec_kw`: for explorers, where automatic layout is too slow."""
    width, height = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
    return {
        "left": left / width,
        "right": 1 - right / width,
        "bottom": bottom / height,
        "top": 1 - top / height,
    }


def png(figure: Figure, *, small: bool = True) -> bytes:
    """The figure as PNG, the same bytes for the same figure.

    Args:
        figure: what to save.
        small: reduce the figure to 128 colors, since a notebook is to stay under 500 KB; False is faster.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 1})
    if small:
        picture = _reduced(Image.open(buffer).convert("RGB"), colors=128)
        buffer = io.BytesIO()
        picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _reduced(picture: Image.Image, *, colors: int) -> Image.Image:
    """A picture with a palette.

    The commonest colors stay exact, so that a class keeps the color of its legend; the others, those of
    photographs and soft edges, are shared out.
    """
    channels = np.asarray(picture).reshape(-1, 3).astype(np.uint32)
    values, counts = np.unique(channels @ np.array([1 << 16, 1 << 8, 1], np.uint32), return_counts=True)
    commonest = values[np.argsort(-counts, kind="stable")][: colors // 2]
    exact = [channel for value in commonest.tolist() for channel in value.to_bytes(3)]
    shared = picture.quantize(colors - len(commonest), Image.Quantize.MEDIANCUT).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette(exact + shared)
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def emit(picture: bytes, alt: str) -> None:
    """Displays a PNG; the alternative text is its text form, which nbval compares and a reader hears.

    Raises:
        ValueError: if the alternative text says nothing.
    """
    if len(alt.split()) < 3:
        raise ValueError(f"alt={alt!r} does not say what the figure shows; write a sentence")
    display({"image/png": picture, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)


def show(figure: Figure, *, alt: str) -> None:
    """Puts a figure into the notebook.

    Args:
        figure: what one of this module's functions returned.
        alt: a sentence that says what is to be seen, for those who cannot see it. nbval compares it, so
            it holds no number that differs from machine to machine.
    """
    emit(png(figure), alt)


def _percent(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


# Pictures -----------------------------------------------------------------------------------------


def _picture(image) -> np.ndarray:
    """uint8 (H, W, 3) from an array or a tensor, (3, H, W) or (H, W, 3)."""
    array = np.asarray(image)
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]) or array.dtype != np.uint8:
        raise ValueError(f"a picture is uint8 (3, H, W) or (H, W, 3), not {array.dtype} {array.shape}")
    return array if array.shape[2] == 3 else array.transpose(1, 2, 0)


def _draw_picture(axes: Axes, image, title: str = "") -> None:
    axes.imshow(_picture(image), interpolation="nearest")
    axes.set_title(title, y=1.0)  # a place of its own spares the search for ticks to avoid
    axes.set_axis_off()


def image_grid(images: Sequence, titles: Sequence[str] = (), *, columns: int = 2) -> Figure:
    """Pictures in rows, each under its title.

    Args:
        images: uint8 (3, H, W) or (H, W, 3), arrays or tensors.
        titles: one for each picture, or none.
        columns: pictures in a row.
    """
    pictures = [_picture(image) for image in images]
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    figure = new_figure(rows * (WIDTH / columns * height / width + 0.3 * bool(titles)))
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for at, axis in enumerate(axes):
        if at < len(pictures):
            _draw_picture(axis, pictures[at], titles[at] if titles else "")
        axis.set_axis_off()
    return figure


def _handles(space: LabelSpace, present=None) -> list[Patch]:
    return [
        Patch(facecolor=np.array(color) / 255, edgecolor=GREY, linewidth=0.5, label=name)
        for index, (name, color) in enumerate(zip(space.classes, space.palette, strict=True))
        if present is None or index in present
    ]


def label_legend(space: LabelSpace) -> Figure:
    """The color of each class."""
    columns = 5
    figure = new_figure(0.25 + 0.25 * math.ceil((space.num_classes + 1) / columns))
    ignored = Patch(facecolor="black", label="ignored")
    figure.legend(handles=[*_handles(space), ignored], loc="center", ncols=columns, frameon=False)
    return figure


def error_map(prediction, truth, space: LabelSpace) -> np.ndarray:
    """uint8 (H, W, 3): wrong pixels orange, right ones light grey, ignored ones black."""
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    picture = np.full((*truth.shape, 3), 225, np.uint8)
    picture[prediction != truth] = np.array([int(RED[at : at + 2], 16) for at in (1, 3, 5)], np.uint8)
    picture[truth == space.ignore_index] = 0
    return picture


def draw_prediction(
    figure: FigureBase, image, prediction, truth, space: LabelSpace, *, view="prediction"
) -> None:
    """Draws the picture beside the predicted classes, or beside the wrong pixels: for explorers.

    Args:
        figure: a figure or one of its parts.
        image: uint8 (3, H, W).
        prediction: classes (H, W).
        truth: classes (H, W).
        space: what the classes are.
        view: "prediction" or "error".
    """
    edges = margins(figure, left=0.05, right=0.05, bottom=0.03, top=0.27)
    left, right = figure.subplots(1, 2, gridspec_kw={**edges, "wspace": 0.02})
    known = np.asarray(truth) != space.ignore_index
    wrong = (np.asarray(prediction) != np.asarray(truth))[known].mean()
    _draw_picture(left, image, "image")
    if view == "error":
        _draw_picture(
            right, error_map(prediction, truth, space), f"wrong pixels: {100 * wrong:.0f} % (orange)"
        )
    else:
        _draw_picture(right, space.color(np.asarray(prediction)), f"prediction, {100 * wrong:.0f} % wrong")


def prediction_strip(image, predictions: Mapping[str, object], truth, space: LabelSpace) -> Figure:
    """One picture and its truth; below, each prediction with its wrong pixels.

    Args:
        image: uint8 (3, H, W).
        predictions: classes (H, W) by title, drawn in this order.
        truth: classes (H, W); its ignored pixels are black.
        space: what the classes are.
    """
    truth, predictions = np.asarray(truth), {title: np.asarray(p) for title, p in predictions.items()}
    present = {int(label) for picture in [truth, *predictions.values()] for label in np.unique(picture)}
    handles = _handles(space, present)
    count, aspect = len(predictions), truth.shape[0] / truth.shape[1]
    # One prediction has its errors beside it, several have them below.
    below = WIDTH / 2 * aspect + 0.3 if count == 1 else 2 * (WIDTH / count * aspect + 0.3)
    legend = 0.3 + 0.24 * math.ceil(len(handles) / 6)
    figure = new_figure(WIDTH / 2 * aspect + 0.3 + below + legend)
    top, bottom = figure.subfigures(2, 1, height_ratios=[WIDTH / 2 * aspect + 0.3, below + legend])
    left, right = top.subplots(1, 2)
    _draw_picture(left, image, "image")
    _draw_picture(right, space.color(truth), "truth")
    axes = bottom.subplots(1, 2).reshape(2, 1) if count == 1 else bottom.subplots(2, count)
    for column, (title, prediction) in enumerate(predictions.items()):
        wrong = (prediction != truth)[truth != space.ignore_index].mean()
        _draw_picture(axes[0, column], space.color(prediction), title)
        _draw_picture(axes[1, column], error_map(prediction, truth, space), f"{100 * wrong:.0f} % wrong")
    bottom.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


# Data and scores ----------------------------------------------------------------------------------


def _bars(
    axis: Axes, names: Sequence[str], values: Sequence[float], texts: Sequence[str], color: str = BLUE
) -> None:
    """Horizontal bars, the first on top, each with its value written at its end."""
    places = np.arange(len(names))
    axis.barh(places, values, color=color, height=0.72)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    for place, value, text in zip(places, values, texts, strict=True):
        start = value if math.isfinite(value) and value > 0 else axis.get_xlim()[0]
        axis.annotate(text, (start, place), (4, 0), textcoords="offset points", va="center", fontsize=9)


def _share(value: float) -> str:
    if 0 < value < 0.001:
        return "< 0.001 %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"


def _draw_frequencies(axis: Axes, names: Sequence[str], share: np.ndarray) -> None:
    """Log bars of shares in percent; a class without pixels has no bar."""
    lowest = share[share > 0].min() / 2 if (share > 0).any() else 0.1
    axis.set_xscale("log")
    axis.set_xlim(lowest, 200)
    _bars(axis, names, share, [_share(value) if value > 0 else "none" for value in share])
    _percent(axis.xaxis)
    axis.set_xlabel("share of the labelled pixels, % (log scale)")


def class_frequencies(space: LabelSpace, counts: Sequence[int]) -> Figure:
    """How much of the data each class is, from the most to the least frequent.

    Args:
        space: what the classes are.
        counts: pixels of each class.
    """
    share = np.asarray(counts, dtype=float)
    share = 100 * share / share.sum()
    order = np.argsort(-share, kind="stable")
    figure = new_figure(0.7 + 0.22 * len(order))
    _draw_frequencies(figure.subplots(), [space.classes[i] for i in order], share[order])
    return figure


def per_class_iou(space: LabelSpace, iou: Sequence[float], frequency: Sequence[float]) -> Figure:
    """Frequency and IoU of each class side by side, from the most to the least frequent class.

    Args:
        space: what the classes are.
        iou: of each class, from 0 to 1; NaN where a class is neither there nor predicted.
        frequency: share or count of each class's pixels.
    """
    share = np.asarray(frequency, dtype=float)
    share = 100 * share / share.sum()
    iou = 100 * np.array([math.nan if value is None else float(value) for value in iou])
    order = np.argsort(-share, kind="stable")
    figure = new_figure(0.9 + 0.22 * len(order))
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_frequencies(left, [space.classes[i] for i in order], share[order])
    left.set_title("how often")
    right.set_xlim(0, 108)
    texts = ["not there" if math.isnan(value) else f"{value:.0f}" for value in iou[order]]
    _bars(right, [space.classes[i] for i in order], np.nan_to_num(iou[order]), texts, ORANGE)
    left.invert_yaxis()  # each panel turned the shared axis round: once is enough
    right.axvline(np.nanmean(iou), color=GREY, linestyle="--", linewidth=1.2)
    right.set_title(f"how well; dashed: mIoU {np.nanmean(iou):.1f} %")
    right.set_xlabel("IoU, %")
    right.tick_params(axis="y", labelleft=False)
    return figure


def curves(steps: Sequence[Mapping], epochs: Sequence[Mapping], baselines: Mapping[str, float]) -> Figure:
    """Training loss and validation mIoU against the step.

    Args:
        steps: a run's step log, dicts with "step" and "loss" (nats).
        epochs: a run's epoch log, dicts with "step" and, where it was measured, "miou" (0 to 1).
        baselines: mIoU (0 to 1) by name, drawn as dashed lines.
    """
    figure = new_figure(3.3)
    left, right = figure.subplots(1, 2)
    left.plot(
        [entry["step"] for entry in steps], [entry["loss"] for entry in steps], color=BLUE, linewidth=1.4
    )
    left.set(xlabel="step", ylabel="training loss, nats", ylim=(0, None))
    measured = [entry for entry in epochs if entry.get("miou") is not None]
    right.plot(
        [entry["step"] for entry in measured],
        [100 * entry["miou"] for entry in measured],
        color=ORANGE,
        marker="o",
        label="this run",
    )
    for (name, value), color in zip(baselines.items(), [GREY, *COLORS[2:]], strict=False):
        right.axhline(
            100 * value, color=color, linestyle="--", linewidth=1.4, label=f"{name}: {100 * value:.1f} %"
        )
    right.set(xlabel="step", ylabel="validation mIoU, %", ylim=(0, None))
    top = max(
        [100 * entry["miou"] for entry in measured] + [100 * value for value in baselines.values()], default=1
    )
    right.set_ylim(0, 1.45 * top)  # room for the legend
    right.legend(loc="upper left", frameon=False)
    for axis in (left, right):
        axis.set_xlim(0, None)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def head_losses(steps: Sequence[Mapping], *, smooth: int = 5) -> Figure:
    """The loss of every head against the step: the main one, those of the pyramid, those of the ladder.

    Args:
        steps: a run's step log, dicts with "step" and "parts", a loss (nats) by head.
        smooth: each point is the mean of so many steps.
    """
    names = list(steps[0]["parts"])
    groups = [
        ("main output", [name for name in names if name == "main"]),
        ("pyramid, by grid rows", [name for name in names if name.startswith("spp")]),
        ("ladder, by subsampling", [name for name in names if name.startswith("level")]),
    ]
    groups = [(title, members) for title, members in groups if members]
    figure = new_figure(3.1)
    axes = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    window = max(1, min(smooth, len(steps)))
    at = [entry["step"] for entry in steps][window - 1 :]
    for axis, (title, members) in zip(axes, groups, strict=True):
        for member, color, style in zip(members, COLORS, ("-", "--", "-.", ":", "-"), strict=False):
            losses = np.convolve(
                [entry["parts"][member] for entry in steps], np.ones(window) / window, "valid"
            )
            axis.plot(at, losses, color=color, linestyle=style, linewidth=1.7, label=member)
        axis.set(title=title, xlabel=f"step (mean of {window})")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if members != ["main"]:
            axis.legend(frameon=False)
    # The axes share their limits, so the largest curve of any panel sets them.
    axes[0].set_ylim(0, 1.05 * max(line.get_ydata().max() for axis in axes for line in axis.lines))
    axes[0].set_ylabel("loss, nats")
    return figure


def long_run(losses: Sequence[float], rates: Sequence[float]) -> Figure:
    """Loss and learning rate of a long run.

    Args:
        losses: mean of each epoch, nats.
        rates: learning rate at the end of each epoch.
    """
    figure = new_figure(2.4)
    epochs = range(1, len(losses) + 1)
    panels = ((losses, "training loss, nats", BLUE), (rates, "learning rate", ORANGE))
    for axis, (values, label, color) in zip(figure.subplots(1, 2), panels, strict=True):
        axis.plot(epochs, values, color=color)
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


# Networks -----------------------------------------------------------------------------------------


def bars_pair(parameters: Mapping[str, float], macs: Mapping[str, float]) -> Figure:
    """Where the parameters are, and where the work is, by part of a network.

    Args:
        parameters: count by part, in the order to draw.
        macs: multiply-adds by part, the same parts.

    Raises:
        ValueError: if the two have different parts.
    """
    if list(parameters) != list(macs):
        raise ValueError(f"parameters has the parts {list(parameters)}, macs has {list(macs)}")
    figure = new_figure(0.95 + 0.3 * len(parameters))
    axes = figure.subplots(1, 2)
    panels = ((parameters, 1e6, "parameters", "M", BLUE), (macs, 1e9, "multiply-adds", "GMAC", ORANGE))
    for axis, (values, unit, title, symbol, color) in zip(axes, panels, strict=True):
        scaled = [value / unit for value in values.values()]
        total = sum(scaled)
        texts = [f"{value:.3g} {symbol}, {_share(100 * value / total)}" for value in scaled]
        axis.set_xlim(0, 1.45 * max(scaled))
        _bars(axis, list(values), scaled, texts, color)
        axis.set(title=f"{title}, {total:.2f} {symbol} in all", xlabel=f"{title}, {symbol}")
    axes[1].tick_params(axis="y", labelleft=False)
    return figure


def ladder_ribbon(stages: Sequence[tuple[str, int, int]], skips: Sequence[tuple[str, str]] = ()) -> Figure:
    """A ladder network as a row of boxes: height = resolution, width = channels, arcs = skip connections.

    Args:
        stages: (name, channels, height of the feature map in px) in the order of the forward pass.
        skips: (from, to) pairs of stage names, the outermost first.
    """
    figure = new_figure(3.9)
    axis = figure.subplots()
    rows = {name: height for name, _, height in stages}
    lowest, highest = min(rows.values()) / 2, max(rows.values())
    deepest = max(at for at, (_, _, height) in enumerate(stages) if height == 2 * lowest)
    gap = 0.045 * sum(channels for _, channels, _ in stages)
    left, center = 0.0, {}
    for at, (name, channels, height) in enumerate(stages):
        color = BLUE if at <= deepest else ORANGE
        axis.bar(left, height - lowest, channels, lowest, align="edge", color=color, edgecolor="white")
        center[name] = left + channels / 2
        left += channels + gap
    # Each skip goes up, across on a rail of its own above all boxes, and down; the outermost is the highest.
    for depth, (start, end) in enumerate(reversed(skips), start=1):
        rail = highest * 1.25 * 1.14**depth
        x = [center[start], center[start], center[end]]
        axis.plot(x, [rows[start], rail, rail], color=GREY, linewidth=1.2)
        arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 1}
        axis.annotate("", (center[end], rows[end]), (center[end], rail), arrowprops=arrow)
    ticks = sorted(set(rows.values()))
    axis.set_yscale("log", base=2)
    axis.set_yticks(ticks, [str(row) for row in ticks])
    axis.set_ylim(lowest, highest * 1.3 * 1.14 ** (len(skips) + 0.5))
    axis.set_xlim(-gap, left)
    axis.set_xticks(
        list(center.values()), [f"{name}\n{channels}" for name, channels, _ in stages], fontsize=9
    )
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("height of the feature map, px (log scale)")
    axis.set_xlabel("part and number of its feature maps (the width of its box)")
    paths = [Patch(color=BLUE, label="down path"), Patch(color=ORANGE, label="up path")]
    axis.legend(handles=paths, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
    return figure
