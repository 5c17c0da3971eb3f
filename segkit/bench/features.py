"""Training a head on a frozen backbone's features from disk, against running the backbone in every step.

OMP_NUM_THREADS=1 python -m segkit.bench features --out data/measured

Both ways train one network from the same weights on the same batches with the loop's own step, and take turns
epoch by epoch. Beside the seconds of an epoch the record has what the features cost before: computing and
writing them, room on disk; how far the losses of the two ways are apart; what half the room would change,
features in float16 in place of float32; and the ratio that the multiplications alone promise. A step costs
the head three forward passes (one, and two for the gradients), the backbone one: so the gain is that of the
backbone's share, however fast the disk is. The weights are random: times and sizes do not depend on them.

Files just written are read from the system's memory. A set that does not fit there is read from disk.
"""

import copy
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segkit import console, data
from segkit.bench import _record
from segkit.data.transforms import normalize
from segkit.measure.latency import compared, interleaved
from segkit.models import build
from segkit.training import Recipe, features, inputs, loop, recipe, setup
from segkit.training.distributed import World, choose_device

MODEL, SIZE = "denseaspp-student4", (128, 256)
EACH_STEP, FROM_DISK = "backbone each step", "features from disk"
CITYSCAPES = {"images": 2975, "size": (512, 1024)}  # the DenseASPP report's training set, Sec. 3


def the_recipe(model: str, size: tuple[int, int], images: int, batch_size: int) -> Recipe:
    """The report's, with random weights on street scenes of this size."""
    return recipe(
        "denseaspp_cityscapes",
        model=model,
        weights="none",
        dataset="streets",
        dataset_options={"size": size, "train": images, "val": 1},
        image_size=(0, 0),
        crop=size,
        batch_size=batch_size,
        mixed_precision=True,  # of use on a GPU only
    )


def macs(model: nn.Module, size: tuple[int, int]) -> dict[str, float]:
    """Multiplications with addition in a forward pass of one image, and the ratio that they promise.

    Returns:
        ``backbone``, ``head``, and ``promised``: a step without the cache by one with it.
    """
    model = copy.deepcopy(model).to("meta").eval()
    counted = {}
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            maps = model.features(torch.empty(1, 3, *size, device="meta"))
        counted["backbone"] = counter.get_total_flops() // 2
        with FlopCounterMode(display=False) as counter:
            model(None, features=maps, image_size=size)
        counted["head"] = counter.get_total_flops() // 2
    return counted | {"promised": (counted["backbone"] + 3 * counted["head"]) / (3 * counted["head"])}


def epochs_of(
    model: nn.Module, dataset: Any, how: Recipe, world: World, workers: int
) -> tuple[Callable[[], None], list[float]]:
    """A call that trains one more epoch, and the list that it puts the losses into."""
    batches = inputs.Batches(dataset, how, world, workers=workers)
    optimizer = setup.make_optimizer(model, how)
    options = setup.forward_options(model, how)
    amp = world.device.type == "cuda" and how.mixed_precision
    losses: list[Tensor] = []
    numbers = itertools.count()

    def epoch() -> None:
        model.train()
        for batch in batches.epoch(next(numbers)):
            setup.set_rate(optimizer, how, 0)
            losses.append(loop._step(model, optimizer, batch, how, world.device, amp, options)["loss"])

    return epoch, losses


def of_half_precision(model: nn.Module, cache: Any, dataset: Any, world: World) -> dict[str, float]:
    """What features in float16 change, in the logits of the first four images at most, in eval mode, float32.

    Returns:
        ``features`` and ``logits``: the largest change by the largest value; ``logits_mean``: the mean change
        by the mean absolute value; ``pixels``: the share of pixels whose class changes.
    """
    device, found = world.device, []
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for index in range(min(4, len(cache))):
            images = normalize(dataset[index]["image"][None].to(device))
            maps = model.features(images)
            halved = maps.half().float()
            exact, changed = (
                model(None, features=each, image_size=tuple(images.shape[2:]))["out"]
                for each in (maps, halved)
            )
            change = (changed - exact).abs()
            found.append(
                (
                    ((halved - maps).abs().max() / maps.abs().max()).item(),
                    (change.max() / exact.abs().max()).item(),
                    (change.mean() / exact.abs().mean()).item(),
                    (changed.argmax(1) != exact.argmax(1)).double().mean().item(),
                )
            )
    names = ("features", "logits", "logits_mean", "pixels")
    most = {name: max(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}
    return most | {"pixels": sum(values[3] for values in found) / len(found)}


def measure(how: Recipe, world: World, *, rounds: int, workers: int, folder: Path) -> dict[str, Any]:
    """Everything, in a folder that is empty and stays so but for what is written there.

    Returns:
        ``macs`` (see :func:`macs`); ``filling``: seconds in all, the room that an image takes, and what the
        report's training set would; ``opening``: seconds to find the features on disk, at the start of each
        further run; ``epoch``: a row for each way; ``epochs_until_it_pays``; ``losses``: steps compared, and
        the largest difference of two losses by the loss; ``float16`` (see :func:`of_half_precision`).
    """
    dataset = data.load(how.dataset, "train", data_dir=folder / "data", **how.dataset_options)
    amp = world.device.type == "cuda" and how.mixed_precision
    torch.manual_seed(how.seed)
    model = setup.prepare_model(how, None, dataset.space.num_classes, world)
    features.check_frozen(model)
    given = {"batch_size": how.batch_size, "amp": amp}
    features.compute(model, [dataset[0]["image"]], device=world.device, **given)  # sets the libraries up

    seconds = []
    for _ in ("filling", "opening"):
        began = time.perf_counter()
        cache = features.cached_features(dataset, model, folder, world=world, workers=workers, **given)
        seconds.append(time.perf_counter() - began)
    example = cache[0]["features"]
    paper = build(how.model, num_classes=20, device="meta").features(
        torch.empty(1, 3, *CITYSCAPES["size"], device="meta")
    )
    paper_bytes = paper.numel() * example.element_size()

    other = copy.deepcopy(model)
    ways = {
        EACH_STEP: epochs_of(model, dataset, how, world, workers),
        FROM_DISK: epochs_of(other, cache, how, world, workers),
    }
    calls = {name: call for name, (call, _) in ways.items()}
    found = compared(
        interleaved(calls, rounds=rounds, warmup=0, device=world.device), batch_size=len(dataset)
    )
    plain, kept = (torch.stack(losses).double() for _, losses in ways.values())
    saved = found[EACH_STEP].median - found[FROM_DISK].median
    return {
        "macs": macs(model, how.crop),
        "filling": {
            "seconds": seconds[0],
            "seconds_per_image": seconds[0] / len(dataset),
            "shape": list(example.shape),
            "dtype": str(example.dtype).removeprefix("torch."),
            "bytes_per_image": cache.path(0).stat().st_size,
            "bytes_per_image_512x1024": paper_bytes,
            "bytes_of_cityscapes_512x1024": paper_bytes * CITYSCAPES["images"],
        },
        "opening": {"seconds": seconds[1], "seconds_per_image": seconds[1] / len(dataset)},
        "epoch": {
            name: {
                "median": timed.median,
                "quartiles": list(timed.quartiles),
                "minimum": min(timed.times),
                "images_per_second": timed.per_second,
                "ratio": timed.ratio,
            }
            for name, timed in found.items()
        },
        "faster": 1 / found[FROM_DISK].ratio,
        "epochs_until_it_pays": math.ceil(seconds[0] / saved) if saved > 0 else None,
        "losses": {"steps": len(plain), "largest_difference": ((kept - plain).abs() / plain).max().item()},
        "float16": of_half_precision(model, cache, dataset, world),
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark, prints what came out, writes it as JSON."""
    parser = console.command("bench features", __doc__)
    parser.add_argument("--model", default=MODEL, help=f"one with a frozen backbone (default: {MODEL})")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--image-size", type=console.size, default=SIZE, metavar="HxW", help="(default: 128x256)"
    )
    parser.add_argument("--images", type=console.count, default=16, help="of an epoch (default: 16)")
    parser.add_argument("--batch", type=console.count, default=8, help="images in a step (default: 8)")
    parser.add_argument("--rounds", type=console.count, default=3, help="timed epochs of each (default: 3)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read (default: 0)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write features.json (cuda: features_cuda.json) here"
    )
    options = parser.parse_args(argv)
    result = _record.stamp(
        None if argv is None else ["segkit.bench", "features", *argv],
        device="cpu" if options.device == "cpu" or not torch.cuda.is_available() else "cuda",
    )
    if hasattr(os, "getloadavg"):  # timings mean little on a busy machine: say how busy it was
        result["machine"]["load_at_start"] = os.getloadavg()[0]
    try:
        world = World(0, 1, choose_device(options.device))
        how = the_recipe(options.model, options.image_size, options.images, options.batch)
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            found = measure(how, world, rounds=options.rounds, workers=options.workers, folder=Path(folder))
    except ValueError as error:  # a model without a frozen backbone, a size that it cannot take
        parser.error(str(error))
    if hasattr(os, "getloadavg"):
        result["machine"]["load_at_end"] = os.getloadavg()[0]
    result |= {
        "device": options.device,
        "model": options.model,
        "image_size": list(options.image_size),
        "images": options.images,
        "batch_size": options.batch,
        "rounds": options.rounds,
        "workers": options.workers,
        "precision": "bf16" if options.device == "cuda" else "fp32",
        "unit": "seconds of an epoch in training, wall time; the two ways take turns",
        "ratio": "to the backbone in each step, the median over the rounds",
    }
    result |= found

    for name, row in found["epoch"].items():
        print(f"{name:<20} {row['median']:8.3f} s an epoch, {row['images_per_second']:7.2f} images/s")
    filling, half, work = found["filling"], found["float16"], found["macs"]
    print(
        f"{found['faster']:.2f} times as fast; the multiplications promise {work['promised']:.2f} "
        f"(backbone {work['backbone'] / 1e9:.2f} GMACs, head {work['head'] / 1e9:.2f})\n"
        f"before: {filling['seconds']:.2f} s to compute and write, {found['opening']['seconds']:.2f} s to "
        f"find again; it pays after {found['epochs_until_it_pays'] or 'no number of'} epochs\n"
        f"on disk: {filling['bytes_per_image']:,} bytes an image; for Cityscapes at 512x1024 "
        f"{filling['bytes_of_cityscapes_512x1024'] / 1e9:.1f} GB\n"
        f"losses of {found['losses']['steps']} steps differ by {found['losses']['largest_difference']:.1e} "
        f"at most\nfloat16 would change logits by {half['logits']:.1e} of the largest, and the class of "
        f"{100 * half['pixels']:.3f} % of the pixels"
    )
    if options.out:
        _record.write(
            options.out / ("features_cuda.json" if options.device == "cuda" else "features.json"), result
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
