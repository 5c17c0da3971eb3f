"""A data set and a network that train in milliseconds, and a command that trains them in another process."""

import argparse
import json
import os
import signal
from pathlib import Path

import torch
from torch import nn
from torchvision import tv_tensors

from segkit.data.labels import LabelSpace
from segkit.training import Recipe, loop, setup, train
from segkit.training.distributed import join

SPACE = LabelSpace("tiny", ("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


class TinySet:
    """Images of colored squares on noise; the class of a pixel is its square's color. 32 x 48 pixels."""

    def __init__(self, length: int = 12, split: str = "train", seed: int = 0, ignored: bool = True) -> None:
        self.space, self.split, self.seed, self.ignored = SPACE, split, seed, ignored
        self.names = [f"{split}_{index:03d}" for index in range(length)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        labels = (
            torch.randint(0, 3, (4, 6), generator=generator).repeat_interleave(8, 0).repeat_interleave(8, 1)
        )
        image = torch.randint(0, 120, (3, 32, 48), generator=generator)
        image = image + 100 * nn.functional.one_hot(labels, 3).permute(2, 0, 1)
        if self.ignored:
            labels[:3] = 255
        return {
            "image": tv_tensors.Image(image.to(torch.uint8)),
            "labels": tv_tensors.Mask(labels.to(torch.uint8)),
            "name": self.names[index],
        }


class TinyNet(nn.Module):
    """Two convolutions, an auxiliary head, and dropout, so that the random state matters."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(8, 3, 1)
        self.aux_head = nn.Conv2d(8, 3, 1)

    def forward(self, x, *, auxiliary=None):
        features = self.dropout(self.norm(self.first(x)).relu())
        out = nn.functional.interpolate(self.head(features), x.shape[-2:], mode="bilinear")
        output = {"out": out}
        if self.training if auxiliary is None else auxiliary:
            output["aux"] = {"level8": nn.functional.avg_pool2d(self.aux_head(features), 4)}
        return output

    def pretrained_parameters(self):
        return list(self.first.parameters())


def tiny_recipe(**changes) -> Recipe:
    """Three epochs of three batches."""
    values = {
        "epochs": 3,
        "batch_size": 4,
        "crop": (32, 48),
        "val_every": 1,
        "learning_rate": 1e-2,
        "weights": "none",
    }
    return Recipe(**{"name": "tiny", "dataset": "none", **values, **changes})


def run_tiny(out, *, resume=False, kill_at=None, plain=False, workers=0):
    """A run whose losses depend on nothing but these arguments; ``plain``: nor on how a batch is split."""
    torch.manual_seed(0)

    def on_step(entry: dict) -> None:
        if entry["step"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return train(
        tiny_recipe(**({"scale": (1.0, 1.0), "exact_batchnorm": False} if plain else {})),
        model=TinyNet(norm=not plain, dropout=0.0 if plain else 0.1),
        train_set=TinySet(ignored=not plain),
        val_set=TinySet(5, "val", seed=1),
        out_dir=out,
        device="cpu",
        resume=resume,
        checkpoint_steps=2,
        workers=workers,
        on_step=on_step,
    )


def gradients(world) -> dict:
    """Two steps of a ladder under DistributedDataParallel, plain and sparing memory; one entry each."""
    generator = torch.Generator().manual_seed(world.rank)
    batches = [
        {
            "image": torch.randint(0, 256, (2, 3, 32, 64), generator=generator, dtype=torch.uint8),
            "labels": torch.randint(0, 3, (2, 32, 64), generator=generator),
        }
        for _ in range(2)
    ]
    found = {}
    for network, aux_weight in (("all heads", 0.4), ("one head", 0.0)):
        found[network] = {}
        for spared, changes in (
            ("plain", {}),
            ("recompute", {"recompute": "stem,block,tu"}),
            ("chunked", {"chunked_loss": True, "recompute": "stem,block,tu"}),
        ):
            recipe = tiny_recipe(model="ladder-resnet18-32-4", aux_weight=aux_weight, **changes)
            torch.manual_seed(0)
            model = setup.prepare_model(recipe, None, 3, world)
            optimizer = setup.make_optimizer(model, recipe)
            options = setup.forward_options(model, recipe)
            parallel = world.wrap(model, all_used=aux_weight > 0)
            entry = {"losses": [], "gradients": []}
            for batch in batches:
                loss = loop._step(parallel, optimizer, batch, recipe, world.device, False, options)["loss"]
                entry["losses"].append(loss.item())
                parts = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
                entry["gradients"].append(parts)
            found[network][spared] = entry | {"buffers": dict(model.named_buffers())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--gradients", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with join("cpu") as world:
        run = run_tiny(args.out, kill_at=args.kill_at, plain=args.plain, workers=args.workers)
        matrix = {"rank": world.rank, "size": world.size, "matrix": run.evaluation.matrix.tolist()}
        Path(f"{args.out}.{world.rank}.json").write_text(json.dumps(matrix))
        if args.gradients:
            torch.save(gradients(world), f"{args.out}.{world.rank}.pt")


if __name__ == "__main__":
    main()
