"""One run while it goes on: its model, optimizer, folder and log; saving, going on, measuring, finishing."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from segkit.evaluation.inference import Evaluation, evaluate
from segkit.training import folder, state
from segkit.training.distributed import World

_log = logging.getLogger("segkit")


class TrainingError(RuntimeError):
    """A run that cannot go on: its loss or its weights are no longer numbers."""


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands: the next batch of which epoch, and how many steps were done in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclasses.dataclass(kw_only=True)
class Run:
    """What a run leaves behind.

    Attributes:
        model: the trained model, on the run's device, in evaluation mode.
        folder: holds settings.json, log.jsonl, checkpoints, and at the end final.pt and result.json.
        steps: one entry a step: epoch, step, loss and its parts (nats), lr, seconds. After a resume the
            entries from before are here in the main process alone, and so are those of ``epochs``: in the
            others the mean loss of the first epoch then covers only the steps since.
        epochs: one entry an epoch: epoch, step, mean loss, lr, seconds; and where the validation split was
            measured miou, pixel_accuracy, iou_by_class and, where the classes include truck, bus and train,
            reduced_miou: fractions in [0, 1].
        evaluation: on the final split, single scale; None where the run stopped before its end.
        multi_scale: the same on several scales with mirror images, where the recipe asks for it.
    """

    model: nn.Module
    folder: Path
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    evaluation: Evaluation | None = None
    multi_scale: Evaluation | None = None

    @property
    def finished(self) -> bool:
        """Whether the run went to its end."""
        return self.evaluation is not None


class OngoingRun:
    """A run in progress. All processes of a run call the same methods in the same order.

    Args:
        where: the run's folder.
        settings: what the run depends on; see :func:`segkit.training.setup.run_settings`.
        described: what a checkpoint says beside the weights; see :func:`segkit.training.setup.description`.
        model: on its device.
        optimizer: of the model's parameters.
        world: this process among all.
        amp: whether the model runs in bfloat16 where it may.
        resume: go on from the folder's last checkpoint, if there is one.
        overwrite: delete an unfinished run in the folder.
    """

    def __init__(
        self,
        where: Path,
        settings: dict[str, Any],
        described: dict[str, Any],
        model: nn.Module,
        optimizer: Optimizer,
        world: World,
        *,
        amp: bool,
        resume: bool,
        overwrite: bool,
    ) -> None:
        self.where, self.described, self.world, self.amp = where, described, world, amp
        self.model, self.optimizer = model, optimizer
        self.trained = False
        """Whether the final weights are there already."""
        self.begin = Position()
        if resume:
            self.begin = self._restore()
        elif world.main:
            folder.start(where, settings, overwrite=overwrite)
        world.share(None)  # no process goes on before all have read, or before the folder is ready
        self.log = folder.Log(where if world.main else None, step=self.begin.step)

    def _restore(self) -> Position:
        """Puts model, optimizer and random state back to the last checkpoint that can be read."""
        final = self.where / folder.FINAL
        if final.is_file():
            try:
                saved = state.load(final)
            except state.CheckpointError as error:
                if not state.checkpoints(self.where):
                    raise state.CheckpointError(f"{error}; start over with --overwrite") from error
                _log.warning("%s; trying the checkpoint before it", error)
            else:
                self.trained = True
                self.model.load_state_dict(saved["model"])
                return Position(saved["epoch"], saved["batch"], saved["step"])
        found = state.latest(self.where)
        if found is None:
            return Position()  # killed before the first checkpoint
        path, saved = found
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        random = saved["random"][self.world.rank]
        torch.set_rng_state(random["cpu"])
        if self.world.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.world.device)
        self.world.share(None)
        if self.world.main:
            state.drop_after(path)  # what could not be read shall not be the newest again
        return Position(saved["epoch"], saved["batch"], saved["step"])

    def save(self, at: Position, names: list[str]) -> None:
        """Saves where the run stands, and deletes all but the last two checkpoints.

        Args:
            at: the position.
            names: files of the last batch, to be named if that one broke the weights.

        Raises:
            TrainingError: if a weight is NaN or infinite; nothing is saved then.
        """
        weights = self.model.state_dict()
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise TrainingError(
                    f"{name} has NaN or infinite values after step {at.step}, a batch of {', '.join(names)}; "
                    f"not saved: the checkpoints in {self.where} are from before"
                )
        random = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.world.device)
        randoms = self.world.gather(random)
        if self.world.main:
            self.log.sync()
            content = {"model": weights, "optimizer": self.optimizer.state_dict(), "random": randoms}
            state.save(
                state.step_path(self.where, at.step), self.described | content | dataclasses.asdict(at)
            )
            state.prune(self.where)

    def measure(self, dataset: Any, **options: Any) -> Evaluation:
        """Evaluates the model as it is, on all processes together."""
        rank = {"rank": self.world.rank, "world_size": self.world.size}
        return evaluate(self.model, dataset, device=self.world.device, amp=self.amp, **rank, **options)

    def keep_final(self, at: Position) -> None:
        """Saves the final weights."""
        if self.world.main:
            content = {"model": self.model.state_dict(), **dataclasses.asdict(at)}
            state.save(self.where / folder.FINAL, self.described | content)
        self.world.share(None)

    def keep_result(self, split: str, evaluation: Evaluation, multi_scale: Evaluation | None) -> None:
        """Writes result.json, which marks the run as finished, and deletes the checkpoints before it."""
        result = {"split": split, "evaluation": evaluation.as_dict()}
        result["multi_scale"] = multi_scale.as_dict() if multi_scale else None
        if self.world.main:
            state.write_text(self.where / folder.RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
            state.prune(self.where, keep=0)

    def end(self, evaluation: Evaluation | None = None, multi_scale: Evaluation | None = None) -> Run:
        """What there is when the run ends or stops."""
        return Run(
            model=self.model.eval(),
            folder=self.where,
            steps=self.log.steps,
            epochs=self.log.epochs,
            evaluation=evaluation,
            multi_scale=multi_scale,
        )
