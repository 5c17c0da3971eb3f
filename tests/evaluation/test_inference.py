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
from segkit.data.labels import CITYSCAPES20, PASCAL_CONTEXT59, LabelSpace
from segkit.evaluation.batchnorm import exact_statistics
from segkit.evaluation.boundary import TrimapIoU
from segkit.evaluation.inference import MULTI_SCALE, evaluate, load_model, predict, read_checkpoint
from segkit.evaluation.metrics import three_mious
from segkit.evaluation.windows import FASTFCN_SCALES, Windows

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


@pytest.mark.parametrize("combine", ["probability", "exp"])
def test_a_model_that_looks_at_each_pixel_alone_gets_the_same_scores_in_windows(combine):
    windows = Windows(side=4, base_size=0, combine=combine)
    result = evaluate(Painter(), Toy(), windows=windows)
    assert torch.equal(result.matrix, by_hand(Toy()))
    assert result.windows == windows


def test_evaluate_in_windows_fills_up_with_the_given_normalizations_black():
    seen = []
    model = Painter()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    windows = Windows(side=16, base_size=0)
    evaluate(model, Toy(1), windows=windows, mean=(0.2, 0.4, 0.6), std=(0.5, 0.5, 0.5))
    assert [tuple(x.shape) for x in seen] == [(1, 3, 16, 16)]
    assert seen[0][0, :, -1, -1].tolist() == pytest.approx([-0.4, -0.8, -1.2])


def test_windows_take_what_the_model_takes():
    """Windows whose side the model cannot divide are padded for it once more, as whole images are."""
    model = Divided(Painter())
    assert torch.equal(evaluate(model, Toy(), windows=Windows(side=5, base_size=0)).matrix, by_hand(Toy()))
    assert set(model.sizes) == {(8, 8)}


def test_the_record_of_an_evaluation_says_whether_it_slid_windows():
    whole, slid = evaluate(Painter(), Toy(1)), evaluate(Painter(), Toy(1), windows=Windows(side=9))
    assert whole.as_dict()["windows"] is None and "windows" not in str(whole)
    assert slid.as_dict()["windows"] == {
        "side": 9,
        "base_size": 520,
        "stride": 6,
        "combine": "probability",
    }
    assert json.loads(json.dumps(slid.as_dict())) == slid.as_dict()
    assert "1 image, scale 1; windows of 9 px, stride 6, long side 520 px" in str(slid)
    result = evaluate(
        Painter(), Toy(1), windows=Windows(side=9, base_size=9), scales=FASTFCN_SCALES, flip=True
    )
    assert (result.scales, result.flip) == (FASTFCN_SCALES, True)


def test_a_trimap_looks_at_an_evaluation_as_it_goes():
    trimap = TrimapIoU(4, (1, 99))
    result = evaluate(
        Painter(),
        Toy(),
        on_image=lambda sample, prediction: trimap.update(prediction[None], sample["labels"][None]),
    )
    assert trimap.miou()[99] == result.miou
    assert torch.equal(trimap.matrices[1], result.matrix)


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
        for combine in ("probability", "exp"):
            windows = Windows(side=5, base_size=0, combine=combine)
            slid = evaluate(model, Toy(), device="cuda", amp=amp, windows=windows, flip=True)
            assert slid.matrix.tolist() == expected["matrix"]
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


def painted(space):
    """A set of one image in the colors of a space: class c in column c, but class 0 wherever c is odd."""

    class Columns:
        split = "val"

        def __len__(self):
            return 1

        def __getitem__(self, index):
            labels = torch.arange(space.num_classes, dtype=torch.uint8).expand(3, -1).clone()
            colors = labels.where(labels % 2 == 0, torch.zeros_like(labels))
            image = torch.tensor(space.palette, dtype=torch.uint8)[colors.long()].permute(2, 0, 1)
            return {"image": tv_tensors.Image(image), "labels": tv_tensors.Mask(labels), "name": "columns"}

    Columns.space = space
    return Columns()


def shown(result):
    """The figures of a table's means, in percent, by name."""
    lines = [line.rsplit(maxsplit=1) for line in result.table().splitlines()]
    return {name.strip(): value for name, value in (line for line in lines if len(line) == 2)}


def test_with_a_background_class_all_three_means_are_shown():
    result = evaluate(Painter(CITYSCAPES20), painted(CITYSCAPES20))
    three = result.three_mious
    assert three == three_mious(result.matrix, background=19)
    # 9 classes are right; road is taken for the 9 odd ones and, in the last reading, for background.
    assert three == pytest.approx(((9 + 1 / 11) / 20, (9 + 1 / 10) / 19, (9 + 1 / 11) / 19))
    assert three.iou20 == result.miou and result.sixty_class_miou is None
    values = json.loads(json.dumps(result.as_dict()))
    assert values["three_mious"] == three._asdict()
    assert values["sixty_class_miou"] is None
    rows = {"- 20, with background", "- 19, background ignored", "- 19, on all pixels"}
    found = {name: value for name, value in shown(result).items() if name.startswith("- ")}
    assert found.keys() == rows
    assert list(found.values()) == [f"{100 * figure:.2f}" for figure in three]


def test_on_pascal_context_the_papers_sixty_classes_are_shown():
    result = evaluate(Painter(PASCAL_CONTEXT59), painted(PASCAL_CONTEXT59))
    assert result.sixty_class_miou == pytest.approx(
        (29 + 1 / 30) / 60
    )  # 29 of the 30 even ones and the first
    assert result.three_mious is None
    values = json.loads(json.dumps(result.as_dict()))
    assert values["sixty_class_miou"] == result.sixty_class_miou == pytest.approx(values["miou"] * 59 / 60)
    assert values["three_mious"] is None
    found = {name: value for name, value in shown(result).items() if name.startswith("- ")}
    assert found == {"- 60, with 0 for background": f"{100 * result.sixty_class_miou:.2f}"}


def test_other_spaces_have_one_mean():
    result = evaluate(Painter(), Toy(1))
    assert (result.three_mious, result.sixty_class_miou) == (None, None)
    assert (result.as_dict()["three_mious"], result.as_dict()["sixty_class_miou"]) == (None, None)
    assert not any(name.startswith("- ") for name in shown(result))


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
        trimap = TrimapIoU(4, (1, 2))
        trimap.update(*_maps(rank))
        trimap.all_reduce()
        layer = nn.BatchNorm2d(3)
        exact_statistics(layer, [images(4, 5, batch=2 + i) + i for i in range(rank, 3, 2)])
        found = {"values": values, "layer": layer.state_dict(), "trimap": (trimap.matrices, trimap.share())}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def _maps(seed):
    """Predictions and labels of two images."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 4, (2, 5, 3), generator=generator).repeat_interleave(4, 2) for _ in range(2)]


def test_two_processes_give_the_figures_of_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # the other process imports this file by its name
    other = torch.multiprocessing.spawn(_share, (1, tmp_path), join=False)
    _share(0, 0, tmp_path)
    while not other.join():
        pass
    alone = nn.BatchNorm2d(3)
    exact_statistics(alone, [images(4, 5, batch=2 + i) + i for i in range(3)])
    trimap = TrimapIoU(4, (1, 2))
    for rank in range(2):
        trimap.update(*_maps(rank))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for limit in (5, 1):
            expected = evaluate(Painter(), Toy(), limit=limit).as_dict()
            for key in ("iiou", "iiou_by_class"):
                assert found["values"][limit].pop(key) == pytest.approx(expected.pop(key), rel=1e-12)
            assert found["values"][limit] == expected
        torch.testing.assert_close(found["layer"], alone.state_dict())
        matrices, share = found["trimap"]
        assert torch.equal(matrices, trimap.matrices) and share == trimap.share()


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
    assert (model.image_size, model.image_windows, model.image_scales) == (None, None, MULTI_SCALE)
    saved.eval()
    assert torch.equal(model(images(5, 6))["out"], saved(images(5, 6))["out"])


def test_load_model_says_how_images_were_seen_in_training(checkpoint):
    recipe = {"windows": 48, "base_size": 52, "combine": "exp", "eval_scales": "0.5, 1"}
    model, _ = load_model(checkpoint(image_size=[24, 40], settings={"recipe": recipe})[0])
    assert (model.image_size, model.image_scales) == ((24, 40), (0.5, 1.0))
    assert model.image_windows == Windows(side=48, base_size=52, combine="exp")
    whole = {"recipe": recipe | {"windows": 0}}
    model, _ = load_model(checkpoint(image_size=[0, 0], settings=whole)[0])
    assert (model.image_size, model.image_windows, model.image_scales) == (None, None, (0.5, 1.0))
    model, _ = load_model(checkpoint(settings={"recipe": {"windows": 48}})[0])
    assert (model.image_windows, model.image_scales) == (Windows(side=48, base_size=0), FASTFCN_SCALES)


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
