import json
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torchvision import tv_tensors

from segkit import models
from segkit.data.labels import LabelSpace
from segkit.evaluation.batchnorm import exact_statistics
from segkit.evaluation.inference import MULTI_SCALE, evaluate, load_model, predict, read_checkpoint

SPACE = LabelSpace(
    name="toy",
    classes=("ground", "car", "bus", "sky"),
    palette=((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)),
    categories=(("vehicle", (1, 2)), ("other", (0, 3))),
    instance_classes=(1, 2),
)


class Painter(nn.Module):
    """Labels each pixel with the nearest of the palette's colors, as long as it comes in ImageNet's scale."""

    def __init__(self, space=SPACE):
        super().__init__()
        self.conv = nn.Conv2d(3, space.num_classes, 1)
        self.dropout = nn.Dropout(0.5)
        colors = torch.tensor(space.palette) / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.no_grad():  # -|x - color|^2, less |x|^2, with x = normalized * std + mean
            self.conv.weight.copy_((60 * colors * std)[..., None, None])
            self.conv.bias.copy_(60 * colors @ mean - 30 * (colors**2).sum(1))

    def forward(self, x):
        return {"out": self.conv(self.dropout(x))}


class Toy:
    """Images of several sizes in the palette's colors; some pixels are painted wrong, some are ignored."""

    space = SPACE
    split = "val"

    def __init__(self, length=5, instances=True):
        self.instances = instances
        self.names = [f"image{i}" for i in range(length)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        size = (6 + index, 11 - index)
        labels = torch.randint(0, 4, size, generator=generator, dtype=torch.uint8)
        painted = torch.where(
            torch.rand(size, generator=generator) < 0.8,
            labels,
            torch.randint(0, 4, size, generator=generator),
        )
        image = torch.tensor(SPACE.palette, dtype=torch.uint8)[painted.long()].permute(2, 0, 1)
        ids = torch.where(torch.arange(size[1]) < 4, 24000, 24001) + 1000 * labels.int()
        labels[0, 0] = 255
        sample = {
            "image": tv_tensors.Image(image),
            "labels": tv_tensors.Mask(labels),
            "name": self.names[index],
        }
        if self.instances:
            sample["instances"] = tv_tensors.Mask(torch.where(labels == 3, 23, ids))
        return sample


def images(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def smoother():
    """A model whose answer depends on the neighborhood, so that scale and mirror image matter."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.sizes = conv, []

        def forward(self, x):
            self.sizes.append(tuple(x.shape[-2:]))
            return {"out": 3 * self.conv(x)}

    return Model()


# predict


def test_predict_is_the_softmax_at_one_scale():
    model, x = smoother(), images(5, 7)
    probabilities = predict(model, x)
    torch.testing.assert_close(probabilities, model(x)["out"].softmax(1), rtol=0, atol=0)
    assert not probabilities.requires_grad
    assert (probabilities * 2).sum() == pytest.approx(2 * 2 * 5 * 7, rel=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (16, 33), (1, 1)])
def test_predict_takes_any_size_and_gives_probabilities(size):
    model = smoother()
    probabilities = predict(model, images(*size), scales=MULTI_SCALE, flip=True)
    assert probabilities.shape == (2, 4, *size)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, *size))
    height, width = size
    expected = [(max(1, round(s * height)), max(1, round(s * width))) for s in MULTI_SCALE for _ in (0, 1)]
    assert model.sizes == expected


def test_predict_averages_scales_and_mirror_images():
    model, x = smoother(), images(8, 12)
    small = F.interpolate(x, (4, 6), mode="bilinear", antialias=True)
    parts = []
    for scaled in (x, small):
        for mirror in (lambda t: t, lambda t: t.flip(-1)):
            softmax = mirror(model(mirror(scaled))["out"].softmax(1))
            parts.append(F.interpolate(softmax, (8, 12), mode="bilinear"))
    found = predict(model, x, scales=(1.0, 0.5), flip=True)
    torch.testing.assert_close(found, torch.stack(parts).mean(0))
    assert not torch.allclose(found, predict(model, x), atol=1e-3)


def test_predict_with_flip_treats_both_sides_alike():
    model, x = smoother(), images(6, 9)
    torch.testing.assert_close(predict(model, x.flip(-1), flip=True), predict(model, x, flip=True).flip(-1))
    assert not torch.allclose(predict(model, x.flip(-1)), predict(model, x).flip(-1), atol=1e-3)


class Divided(nn.Module):
    """A model that takes sizes divisible by 8 alone."""

    size_divisor = 8

    def __init__(self, model):
        super().__init__()
        self.model, self.sizes = model, []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[-2:]))
        if x.shape[-2] % 8 or x.shape[-1] % 8:
            raise ValueError(f"{tuple(x.shape[-2:])} is not divisible by 8")
        return self.model(x)


@pytest.mark.parametrize("size", [(5, 7), (16, 33), (8, 24), (1, 1)])
def test_images_are_padded_for_models_that_take_multiples_only(size):
    """A 3x3 convolution takes what lies around its image for zeros, so that padding must change nothing."""
    plain = smoother()
    model = Divided(plain)
    for scales in ((1.0,), MULTI_SCALE):
        expected = predict(plain, images(*size), scales=scales, flip=True)
        torch.testing.assert_close(predict(model, images(*size), scales=scales, flip=True), expected)
    assert model.sizes[:2] == 2 * [(-(-size[0] // 8) * 8, -(-size[1] // 8) * 8)]  # no more than needed


def test_images_are_padded_with_the_mean_pixel():
    model = Painter()
    seen = []
    model.size_divisor = 8
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    predict(model, images(5, 7) + 1)
    assert seen[0].shape == (2, 3, 8, 8)
    assert torch.equal(seen[0][..., :5, :7], images(5, 7) + 1)
    assert seen[0][..., 5:, :].abs().sum() == seen[0][..., 7:].abs().sum() == 0


@pytest.mark.parametrize("name", ["enet", "espnet", "erfnet"])
def test_networks_that_halve_and_double_take_any_image(name):
    torch.manual_seed(0)
    model = models.build(name, num_classes=5)
    with pytest.raises(ValueError, match="divisible by 8"):
        model(images(19, 30))
    probabilities = predict(model, images(19, 30), scales=(0.5, 1.0, 1.5), flip=True)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 19, 30))
    assert torch.equal(predict(model, images(24, 32)), model.eval()(images(24, 32))["out"].softmax(1))


def test_predict_runs_in_eval_mode_and_leaves_each_mode_as_it_was():
    model = nn.ModuleDict({"inner": Painter(), "frozen": nn.BatchNorm2d(3)}).train()
    model["frozen"].eval()
    model.forward = lambda x: model["inner"](x)
    first = predict(model, images(4, 4))
    assert torch.equal(first, predict(model, images(4, 4)))  # dropout is off
    assert model.training and model["inner"].dropout.training and not model["frozen"].training

    def fail(x):
        raise ZeroDivisionError

    model.forward = fail
    with pytest.raises(ZeroDivisionError):
        predict(model, images(4, 4))
    assert model.training and not model["frozen"].training


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {}, "normalized floats"),
        (torch.zeros(3, 4, 4), {}, r"shape \(3, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4), {"scales": ()}, "at least one"),
        (torch.zeros(1, 3, 4, 4), {"scales": (1.0, -0.5)}, r"\(1.0, -0.5\)"),
    ],
)
def test_predict_refuses_what_it_cannot_use(x, arguments, message):
    with pytest.raises(ValueError, match=message):
        predict(smoother(), x, **arguments)


# evaluate


def by_hand(dataset):
    """Confusion matrix of `Painter`, which returns the class of the color it sees."""
    matrix = torch.zeros(4, 4, dtype=torch.int64)
    for i in range(len(dataset)):
        sample = dataset[i]
        colors = sample["image"].permute(1, 2, 0).reshape(-1, 3).tolist()
        for color, truth in zip(colors, sample["labels"].flatten().tolist(), strict=True):
            if truth != 255:
                matrix[truth, SPACE.palette.index(tuple(color))] += 1
    return matrix


def test_evaluate_scores_images_of_several_sizes_from_one_matrix():
    model, dataset, seen = Painter().train(), Toy(), []
    result = evaluate(
        model, dataset, on_image=lambda sample, prediction: seen.append((sample["name"], prediction.shape))
    )
    matrix = by_hand(dataset).double()
    assert torch.equal(result.matrix, matrix.long())
    iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert result.iou.tolist() == iou.tolist()
    assert 0.5 < result.miou == iou.mean() < 0.9
    assert result.pixel_accuracy == matrix.diagonal().sum() / matrix.sum()
    vehicles = matrix[1:3, 1:3].sum() / (matrix[1:3].sum() + matrix[:, 1:3].sum() - matrix[1:3, 1:3].sum())
    assert result.category_ious["vehicle"] == pytest.approx(vehicles.item())
    assert result.category_iou == pytest.approx(sum(result.category_ious.values()) / 2)
    assert set(result.iious) == {"car", "bus"}
    assert result.iiou == pytest.approx(sum(result.iious.values()) / 2)
    assert result.images == 5
    assert seen == [(f"image{i}", (6 + i, 11 - i)) for i in range(5)]
    assert model.training


def test_evaluate_pads_for_models_that_take_multiples_only():
    model = Divided(Painter())
    assert evaluate(model, Toy()).as_dict() == evaluate(Painter(), Toy()).as_dict()
    assert model.sizes == [(8, 16), (8, 16), (8, 16), (16, 8), (16, 8)]  # for sides of 6 + i and 11 - i


def test_evaluate_without_instances_has_no_iiou():
    result = evaluate(Painter(), Toy(instances=False))
    assert result.iiou is None
    assert result.iious == result.instance_sizes == {}


def test_evaluate_takes_instance_sizes_by_name():
    own, double = evaluate(Painter(), Toy()), None
    double = evaluate(
        Painter(), Toy(), instance_sizes={name: 2 * s for name, s in own.instance_sizes.items()}
    )
    assert double.iiou > own.iiou  # false positives weigh half as much
    with pytest.raises(ValueError, match="no size for class 'bus'"):
        evaluate(Painter(), Toy(), instance_sizes={"car": 3.0})


def test_evaluate_stops_at_the_limit():
    assert torch.equal(evaluate(Painter(), Toy(), limit=2).matrix, by_hand(Toy(2)))
    for everything in (None, 0, 99):
        assert evaluate(Painter(), Toy(), limit=everything).images == 5


def test_evaluate_passes_scales_on():
    assert evaluate(Painter(), Toy(), scales=(0.5,), flip=True).matrix.tolist() != by_hand(Toy()).tolist()
    result = evaluate(Painter(), Toy(), scales=MULTI_SCALE, flip=True)
    assert (result.scales, result.flip) == (MULTI_SCALE, True)


def test_evaluate_uses_the_normalization_of_the_model_or_the_given_one():
    model = Painter()
    assert evaluate(model, Toy(), mean=(9.0, 9.0, 9.0)).miou < evaluate(model, Toy()).miou
    model.image_mean, model.image_std = (9.0, 9.0, 9.0), (0.2, 0.2, 0.2)
    assert evaluate(model, Toy()).miou < 0.3


def test_a_model_can_be_trained_after_it_was_evaluated():
    model, kept = Painter().train(), []
    result = evaluate(model, Toy(2), on_image=lambda sample, prediction: kept.append(prediction))
    assert not any(t.is_inference() for t in (*model.parameters(), *kept, result.matrix, result.iou))
    loss = F.cross_entropy(model(images(6, 11, batch=1))["out"], kept[0][None])
    loss.backward()
    assert model.conv.weight.grad.abs().sum() > 0


def test_mixed_precision_is_for_gpus_alone():
    assert evaluate(Painter(), Toy(), amp=True).as_dict() == evaluate(Painter(), Toy()).as_dict()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_figures_of_the_cpu():
    expected, model = evaluate(Painter(), Toy()).as_dict(), Painter()
    for amp in (False, True):  # the colors are far enough apart for bfloat16
        assert evaluate(model, Toy(), device="cuda", amp=amp).as_dict() == expected
    assert next(model.parameters()).is_cuda


def test_evaluate_names_what_does_not_fit():
    with pytest.raises(ValueError, match="nothing to evaluate: 0 images"):
        evaluate(Painter(), Toy(0))
    with pytest.raises(ValueError, match="limit -1"):
        evaluate(Painter(), Toy(), limit=-1)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        evaluate(Painter(), Toy(), rank=2, world_size=2)
    with pytest.raises(RuntimeError, match="no process group"):
        evaluate(Painter(), Toy(), rank=1, world_size=2)
    wider = LabelSpace("wider", (*SPACE.classes, "tree"), (*SPACE.palette, (9, 9, 9)))
    with pytest.raises(ValueError, match="predicts 5 classes, but the data set's 'toy' has 4"):
        evaluate(Painter(wider), Toy())

    class Broken(Toy):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            sample["labels"][1, 1] = 17
            return sample

    with pytest.raises(ValueError, match="image0: the labels contain 17"):
        evaluate(Painter(), Broken())


def test_the_result_prints_and_goes_to_json():
    result = evaluate(Painter(), Toy(1))
    text = str(result)
    assert text == result.table()
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "1 image, scale 1" in text
    assert f"{100 * result.iou[1]:.2f}" in lines["car"]
    assert f"{100 * result.iious['car']:.2f}" in lines["car"]
    assert f"{100 * result.miou:.2f}" in lines["mean over classes"]
    assert f"{100 * result.pixel_accuracy:.2f}" in lines["pixel accuracy"]
    again = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert again == result.as_dict()
    assert again["miou"] == result.miou
    assert list(again["iou_by_class"].items()) == list(zip(SPACE.classes, result.iou.tolist(), strict=True))
    assert again["matrix"] == result.matrix.tolist()


def test_a_class_that_occurs_nowhere_prints_as_a_dash_and_is_none_in_json():
    class Ground(Toy):
        def __getitem__(self, index):
            size = (2, 3)
            ground = {"image": tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8))}
            return ground | {
                "labels": tv_tensors.Mask(torch.zeros(size, dtype=torch.uint8)),
                "name": "ground",
            }

    result = evaluate(Painter(), Ground(1))
    assert result.miou == 1.0
    assert math.isnan(result.iou[3])
    assert result.as_dict()["iou_by_class"] == {"ground": 1.0, "car": None, "bus": None, "sky": None}
    assert next(line for line in str(result).splitlines() if line.startswith("sky")).split() == [
        "sky",
        "-",
        "0.00",
    ]


def _share(index, rank, folder):
    """One of two processes, each with its own images and batches."""
    patience = timedelta(seconds=120)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=patience
    )
    try:
        values = {}
        for limit in (5, 1):  # the second process has 2 images, and then none
            values[limit] = evaluate(Painter(), Toy(), limit=limit, rank=rank, world_size=2).as_dict()
        layer = nn.BatchNorm2d(3)
        exact_statistics(layer, [images(4, 5, batch=2 + i) + i for i in range(rank, 3, 2)])
        torch.save({"values": values, "layer": layer.state_dict()}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_give_the_figures_of_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # the other process imports this file by its name
    other = torch.multiprocessing.spawn(_share, (1, tmp_path), join=False)
    _share(0, 0, tmp_path)
    while not other.join():
        pass
    alone = nn.BatchNorm2d(3)
    exact_statistics(alone, [images(4, 5, batch=2 + i) + i for i in range(3)])
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for limit in (5, 1):
            expected = evaluate(Painter(), Toy(), limit=limit).as_dict()
            for key in ("iiou", "iiou_by_class"):
                assert found["values"][limit].pop(key) == pytest.approx(expected.pop(key), rel=1e-12)
            assert found["values"][limit] == expected
        torch.testing.assert_close(found["layer"], alone.state_dict())


# load_model


def tiny(*, num_classes, recompute=None, width=4):
    features = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    model = nn.ModuleDict({"features": features, "head": nn.Conv2d(width, num_classes, 1)})
    model.forward = lambda x: {"out": model["head"](features(x))}
    return model


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Writes a checkpoint of `tiny` with changes; gives its path and the model."""
    monkeypatch.setitem(models.MODELS, "tiny", tiny)

    def write(**changes):
        torch.manual_seed(0)
        model = models.build("tiny", num_classes=4, width=6)
        state = {
            "model_name": "tiny",
            "model_options": {"width": 6, "weights": "imagenet"},
            "num_classes": 4,
            "space": {
                "name": "toy",
                "classes": list(SPACE.classes),
                "palette": [list(color) for color in SPACE.palette],
                "categories": [["vehicle", [1, 2]], ["other", [0, 3]]],
                "instance_classes": [1, 2],
                "ignore_index": 255,
            },
            "model": model.state_dict(),
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
            "optimizer": {"state": {}},
            **changes,
        }
        path = tmp_path / "checkpoint.pt"
        torch.save({key: value for key, value in state.items() if value is not None}, path)
        return path, model

    return write


def test_load_model_gives_back_what_was_saved(checkpoint):
    path, saved = checkpoint(resolution=0.5)
    model, space = load_model(path)
    assert space == SPACE
    assert not model.training
    assert (model.image_mean, model.image_std, model.image_resolution) == (
        (0.4, 0.5, 0.6),
        (0.2, 0.25, 0.3),
        0.5,
    )
    saved.eval()
    assert torch.equal(model(images(5, 6))["out"], saved(images(5, 6))["out"])


def test_load_model_names_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.pt"):
        load_model(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="is a folder"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(checkpoint, keep):
    path, _ = checkpoint()
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read: it is truncated"):
        read_checkpoint(path)


def test_foreign_files_are_refused(checkpoint, tmp_path):
    foreign = tmp_path / "foreign.pt"
    foreign.write_text("no weights here")
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(foreign)
    torch.save(nn.Conv2d(3, 4, 1).state_dict(), foreign)
    with pytest.raises(ValueError, match=r"no checkpoint of segkit\.train: it has no model_name"):
        load_model(foreign)
    torch.save([1, 2], foreign)
    with pytest.raises(ValueError, match="no checkpoint of segkit"):
        load_model(foreign)
    torch.save(Painter(), foreign)  # a pickled object, which would run its own code
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(foreign)


def test_checkpoints_that_contradict_themselves_are_refused(checkpoint):
    path, _ = checkpoint(num_classes=5)
    with pytest.raises(ValueError, match="a model of 5 classes, 4 class names"):
        load_model(path)
    path, _ = checkpoint(model_options={"width": 7})
    with pytest.raises(ValueError, match="do not fit the model 'tiny'"):
        load_model(path)
    path, _ = checkpoint(model_name="tinny")
    with pytest.raises(ValueError, match=r"cannot be built: .*tiny"):
        load_model(path)
    path, _ = checkpoint(mean=None)
    with pytest.raises(ValueError, match="it has no mean"):
        load_model(path)
