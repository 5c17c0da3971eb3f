"""The training loop, the same for every recipe. Read :func:`train` from top to bottom."""

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from segkit.data.sampling import first
from segkit.data.transforms import normalize
from segkit.evaluation.batchnorm import exact_statistics
from segkit.training import distributed, features, folder, inputs, setup
from segkit.training.losses import segmentation_loss
from segkit.training.ongoing import OngoingRun, Position, Run, TrainingError
from segkit.training.recipes import Recipe

Callback = Callable[[dict[str, Any]], None]

FETCH_EVERY = 10  # steps on a GPU between two looks at the losses, each of which makes the GPU wait


def train(
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    train_set: Any = None,
    val_set: Any = None,
    data_dir: str | Path | None = None,
    out_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    overwrite: bool = False,
    max_minutes: float | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
    workers: int | None = None,
    checkpoint_minutes: float = 10.0,
    checkpoint_steps: int | None = None,
    verify: bool = True,
    progress: bool | None = None,
    on_step: Callback | None = None,
    on_epoch: Callback | None = None,
) -> Run:
    """Trains as a recipe says; under ``torchrun`` on all its processes.

    Args:
        recipe: what to train on what, and how.
        model: your own model instead of the recipe's; it returns a dict with ``"out"`` and perhaps ``"aux"``,
            and may take a keyword ``auxiliary``, and for a chunked loss ``full_size``. Its batch norm keeps
            its own momentum.
        train_set: your own training set instead of the recipe's: items as those of :func:`segkit.data.load`,
            and the attributes ``.space`` (a LabelSpace), ``.split`` and ``.names``.
        val_set: your own set of that kind, for the measurements on the way and at the end.
        data_dir: where the data sets are; None for the data root.
        out_dir: the run's folder; None for runs/RECIPE-HASH, one for each recipe and settings.
        device: "cpu", "cuda", "cuda:1"; None for a GPU where there is one. With several processes "cuda"
            gives each its own GPU.
        resume: go on from the last checkpoint in the folder. The recipe's ``recompute`` and ``chunked_loss``
            may have changed.
        overwrite: delete an unfinished run in the folder.
        max_minutes: stop at a checkpoint after this time; resume goes on.
        limit_train: use the first so many training images; None or 0 for all.
        limit_val: use the first so many images of the other splits; None or 0 for all.
        workers: loading processes; None for none on the CPU and up to 8 beside a GPU.
        checkpoint_minutes: save after this time within an epoch (the end of an epoch is always saved).
        checkpoint_steps: also save each time the number of steps is a multiple of this.
        verify: read all data once before training, so that a bad file is named now and not in the middle.
        progress: a progress bar; None for one in a live terminal that has tqdm.
        on_step: called with each step's log entry, in the main process.
        on_epoch: called with each epoch's log entry, in the main process.

    Returns:
        The run. Its losses are the same bit for bit, on a CPU, whether it was killed and resumed or not.

    Raises:
        ValueError: if settings and data do not fit, or a run with other settings (or another number of
            processes) shall be resumed.
        FileExistsError: if an unfinished run lies in the folder.
        FileNotFoundError: if data, weights to start from, or a run to resume, is missing.
        TrainingError: if the loss becomes NaN or infinite; the files of the batch are named.
    """
    limits = {"limit_train": limit_train, "limit_val": limit_val}
    with distributed.join(device) as world:
        settings = setup.run_settings(recipe, model, train_set, limits, world.size)
        where = folder.default_folder(settings) if out_dir is None else Path(out_dir)
        gpu = world.device.type == "cuda"
        amp = gpu and recipe.mixed_precision

        # The run's folder, a fresh one or one to go on in; data; model and optimizer.
        if resume:
            folder.check_resume(where, settings)
        elif world.main:
            folder.check_start(where, overwrite=overwrite)
        restored = resume and folder.has_weights(where)
        setup.check_weights(recipe, model, needed=not restored)
        if train_set is None:
            train_set = inputs.open_split(recipe, recipe.train_split, data_dir=data_dir)
        train_set = first(train_set, limit_train)
        val_set, final_set = setup.measured_sets(recipe, val_set, data_dir, limit_val)
        batches = inputs.Batches(train_set, recipe, world, workers=workers)
        torch.manual_seed(recipe.seed)
        model = setup.prepare_model(recipe, model, train_set.space.num_classes, world, restored=restored)
        if recipe.cache_features:
            features.check_frozen(model)
        optimizer = setup.make_optimizer(model, recipe)
        options = setup.forward_options(model, recipe)
        if world.main:
            setup.warn_of_large_crop(recipe, train_set)
            setup.warn_of_long_warmup(recipe, len(batches))
            if verify and not resume:
                # Of one split, the final set has all files of the other one, and perhaps instances.
                twice = val_set is not None and val_set.split == final_set.split
                inputs.verify(train_set, None if twice else val_set, final_set)
        described = setup.description(recipe, train_set, settings)
        ongoing = OngoingRun(
            where, settings, described, model, optimizer, world, amp=amp, resume=resume, overwrite=overwrite
        )
        bar = progress if world.main else False
        if recipe.cache_features and not ongoing.trained:
            # Not before the run's own weights are back: features are those of the backbone that goes on.
            cached = features.cached_features(
                train_set,
                model,
                where.parent,
                world=world,
                batch_size=world.share_of_batch(recipe.batch_size),
                amp=amp,
                size=recipe.crop,
                workers=batches.workers,
                shown=lambda images: _shown(images, "features", bar),
            )
            batches = inputs.Batches(cached, recipe, world, workers=workers)
        parallel = world.wrap(model, all_used=recipe.aux_weight > 0 or recipe.presence_weight > 0)
        windows = setup.windows(recipe)
        began = saved = time.monotonic()

        at = ongoing.begin
        for epoch in range(at.epoch, recipe.epochs):
            model.train()
            waiting: list[tuple[dict[str, Tensor], list[str]]] = []  # losses that are still on the device
            rates: list[float] = []  # of the same steps
            epoch_began = clock = time.monotonic()
            shown = f"epoch {epoch + 1}/{recipe.epochs}"
            for batch in _shown(batches.epoch(epoch, start=at.batch), shown, bar):
                rates.append(setup.set_rate(optimizer, recipe, epoch, at.batch, len(batches)))
                losses = _step(parallel, optimizer, batch, recipe, world.device, amp, options)
                waiting.append((losses, batch["name"]))
                at = Position(epoch, at.batch + 1, at.step + 1)
                last = at.batch == len(batches)
                save_now = bool(checkpoint_steps) and at.step % checkpoint_steps == 0
                if gpu and len(waiting) < FETCH_EVERY and not (last or save_now):
                    continue

                seconds = (time.monotonic() - clock) / len(waiting)
                for rate, (step, loss, parts) in zip(rates, _fetch(waiting, at.step, ongoing), strict=True):
                    entry = {"epoch": epoch, "step": step, "loss": loss, "parts": parts, "lr": rate}
                    entry = ongoing.log.write("step", **entry, seconds=seconds)
                    if on_step and world.main:
                        on_step(entry)
                waiting, rates = [], []
                late, due = world.agree(_past(began, max_minutes), _past(saved, checkpoint_minutes))
                if (late or due or save_now) and not last:
                    ongoing.save(at, batch["name"])
                    saved = time.monotonic()
                    if late:
                        return ongoing.end()
                clock = time.monotonic()

            # The end of an epoch: measure, log, save.
            world.share_buffers(model)
            measured = {}
            if val_set is not None and (epoch + 1) % recipe.val_every == 0:
                scores = ongoing.measure(val_set, windows=windows).as_dict()
                figures = ["miou", "pixel_accuracy", "iou_by_class"]
                figures += ["reduced_miou"] * (scores["reduced_miou"] is not None)
                measured = {key: scores[key] for key in figures}
            mean_loss = statistics.fmean(
                entry["loss"] for entry in ongoing.log.steps if entry["epoch"] == epoch
            )
            entry = {"epoch": epoch, "step": at.step, "loss": mean_loss, "lr": rate, **measured}
            entry = ongoing.log.write("epoch", **entry, seconds=time.monotonic() - epoch_began)
            if on_epoch and world.main:
                on_epoch(entry)
            at = Position(epoch + 1, 0, at.step)
            ongoing.save(at, batch["name"])
            saved = time.monotonic()
            if world.agree(_past(began, max_minutes))[0]:
                return ongoing.end()

        # The end of the run: exact batch-norm statistics over one more epoch of training batches (Sec. 6.1:
        # "over the training set"; to take crops as in training is chosen), and the figures that count.
        if not ongoing.trained:
            if recipe.exact_batchnorm:
                images = (_images(batch, world.device) for batch in batches.epoch(recipe.epochs))
                exact_statistics(model, images, amp=amp)
            ongoing.keep_final(at)
        sizes = setup.instance_sizes(recipe)
        evaluation = ongoing.measure(final_set, windows=windows, instance_sizes=sizes)
        multi_scale = None
        if recipe.multi_scale:
            multi_scale = ongoing.measure(
                final_set, scales=recipe.scales, flip=True, windows=windows, instance_sizes=sizes
            )
        ongoing.keep_result(final_set.split, evaluation, multi_scale)
        return ongoing.end(evaluation, multi_scale)


@contextlib.contextmanager
def _fastest_convolutions(gpu: bool) -> Iterator[None]:
    """Lets cuDNN try what is fastest: in training steps alone, whose crops have one size."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or gpu
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: dict[str, Any],
    recipe: Recipe,
    device: torch.device,
    amp: bool,
    options: dict[str, Any],
) -> dict[str, Tensor]:
    """One step of training; returns the loss and its parts, still on the device."""
    labels = batch["labels"].to(device, non_blocking=True)  # (B, H, W)
    if "features" in batch:  # of a frozen backbone, which then has nothing to do
        images, size = None, tuple(labels.shape[1:])
        options = {**options, "features": _laid_out(batch["features"], device), "image_size": size}
    else:
        images = _images(batch, device)
    with _fastest_convolutions(device.type == "cuda"):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            output = model(images, **options)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            setup.check_all_used(output, recipe)
        loss, parts = segmentation_loss(
            output,
            labels,
            aux_weight=recipe.aux_weight,
            chunked=recipe.chunked_loss,
            main_loss=setup.main_loss(recipe),
            aux_loss=recipe.aux_loss,
            presence_weight=recipe.presence_weight,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
    optimizer.step()
    return {"loss": loss.detach(), **parts}


def _images(batch: dict[str, Any], device: torch.device) -> Tensor:
    """The batch's images as the model takes them, float (B, 3, H, W)."""
    return _laid_out(normalize(batch["image"].to(device, non_blocking=True)), device)


def _laid_out(maps: Tensor, device: torch.device) -> Tensor:
    """Maps (B, C, h, w) on the device, on a GPU with channels last, as convolutions are faster there."""
    maps = maps.to(device, non_blocking=True)
    return maps.contiguous(memory_format=torch.channels_last) if device.type == "cuda" else maps


def _fetch(
    waiting: list[tuple[dict[str, Tensor], list[str]]], last_step: int, ongoing: OngoingRun
) -> Iterable[tuple[int, float, dict[str, float]]]:
    """Brings losses from the device, averaged over the processes: step, loss and parts of each step.

    Raises:
        TrainingError: at a loss that is no number; the files of that batch are named.
    """
    names = list(waiting[0][0])
    own = torch.stack([torch.stack(list(losses.values())) for losses, _ in waiting])  # (steps, losses)
    means = ongoing.world.mean(own.clone()).tolist()
    for index, (loss, *parts) in enumerate(means):
        step = last_step - len(waiting) + 1 + index
        if not math.isfinite(loss):
            mine = [] if own[index, 0].isfinite() else waiting[index][1]
            files = ", ".join(name for part in ongoing.world.gather(mine) for name in part)
            raise TrainingError(
                f"the loss of step {step} is {loss}, in a batch of {files}; checkpoints in {ongoing.where} "
                "are from before it: look at these files, or lower the learning rate"
            )
        yield step, loss, dict(zip(names[1:], parts, strict=True))


def _past(since: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - since > 60 * minutes


def _shown(batches: Iterable[Any], text: str, wanted: bool | None) -> Iterable[Any]:
    """The batches, or whatever is looped over, with a progress bar where someone can watch it."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        return batches
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return batches
    return tqdm(batches, desc=text, leave=False)
