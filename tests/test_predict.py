import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segkit import models, predict
from segkit.data.labels import LabelSpace
from segkit.evaluation.inference import MULTI_SCALE
from segkit.evaluation.windows import Windows

SPACE = LabelSpace("toy", ("dark", "red", "blue"), ((30, 30, 30), (250, 20, 10), (10, 20, 240)))


class Nearest(nn.Module):
    """Labels each pixel with the nearest of three colors; refuses images under `minimum_size`."""

    minimum_size = 8

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 1)
        colors = torch.tensor(SPACE.palette) / 255
        with torch.no_grad():
            self.conv.weight.copy_(60 * colors[..., None, None])
            self.conv.bias.copy_(-30 * (colors**2).sum(1))
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[-2:]))
        if min(x.shape[-2:]) < self.minimum_size:
            raise ValueError(f"{x.shape[-2]}x{x.shape[-1]} is too small")
        return {"out": self.conv(x)}


def nearest(resolution=1.0, size=None, windows=None, scales=MULTI_SCALE):
    """The model with what `load_model` puts on it."""
    model = Nearest(3)
    model.image_mean, model.image_std = (0.0,) * 3, (1.0,) * 3
    model.image_resolution, model.image_size = resolution, size
    model.image_windows, model.image_scales = windows, scales
    return model


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "nearest", lambda *, num_classes, recompute=None: Nearest(num_classes))
    path = tmp_path / "final.pt"
    space = {"name": SPACE.name, "classes": list(SPACE.classes), "palette": [list(c) for c in SPACE.palette]}
    state = {"model_name": "nearest", "model_options": {}, "num_classes": 3, "space": space}
    torch.save({**state, "model": Nearest(3).state_dict(), "mean": [0.0] * 3, "std": [1.0] * 3}, path)
    return str(path)


TRUTH = np.zeros((9, 14), np.uint8)
TRUTH[:4, :5] = 1
TRUTH[6:, 10:] = 2


def picture():
    return Image.fromarray(np.array(SPACE.palette, np.uint8)[TRUTH])


def labels_of(path):
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


def test_overlay_labels_and_legend(checkpoint, tmp_path, capsys):
    source = tmp_path / "photo.png"
    picture().save(source)
    out = tmp_path / "made" / "here"
    assert predict.main([str(source), "--checkpoint", checkpoint, "--out", str(out), "--alpha", "0.25"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["photo_labels.png", "photo_overlay.png"]
    assert (labels_of(out / "photo_labels.png") == TRUTH).all()
    with Image.open(out / "photo_labels.png") as image:
        assert (np.array(image.convert("RGB")) == np.array(SPACE.palette)[TRUTH]).all()
    with Image.open(out / "photo_overlay.png") as image:
        # Photo and colors are the same here, so any mixture of them is the photo.
        assert image.mode == "RGB" and (np.array(image) == np.array(picture())).all()
    printed = capsys.readouterr().out.splitlines()
    assert "9x14" in printed[0] and "photo_overlay.png" in printed[0]
    assert [line.split() for line in printed[1:]] == [
        [name, f"{100 * (c == TRUTH).mean():.2f}", "%"] for c, name in ((0, "dark"), (1, "red"), (2, "blue"))
    ]


def test_overlay_mixes_by_alpha():
    photo = Image.fromarray(np.full((2, 2, 3), 200, np.uint8))
    labels = torch.tensor([[0, 1], [2, 2]])
    for alpha in (0.0, 0.25, 1.0):
        mixed = np.array(predict.overlay(photo, labels, SPACE, alpha=alpha)).astype(int)
        expected = (1 - alpha) * 200 + alpha * np.array(SPACE.palette)[labels.numpy()]
        assert np.abs(mixed - expected).max() <= 1


def saved(name, image, folder, **options):
    path = folder / name
    image.save(path, **options)
    return path


def palette(colors=3):
    return picture().quantize(colors)


def with_alpha():
    image = picture()
    image.putalpha(Image.fromarray(np.full(TRUTH.shape, 7, np.uint8)))
    return image


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("rgb.bmp", picture, {}),
        ("rgba.png", with_alpha, {}),
        ("palette.png", palette, {}),
        ("transparent.png", palette, {"transparency": bytes([0, 128, 255])}),
        ("palette.gif", palette, {}),
        ("lossless.webp", picture, {"lossless": True}),
        ("deflated.tiff", picture, {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_formats_and_modes(checkpoint, tmp_path, name, make, options):
    path = saved(name, make(), tmp_path, **options)
    assert predict.main([str(path), "--checkpoint", checkpoint, "--out", str(tmp_path)]) == 0
    assert (labels_of(tmp_path / f"{path.stem}_labels.png") == TRUTH).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16", "I"])
def test_gray_images_of_any_depth_look_the_same(tmp_path, mode):
    gray = np.where(TRUTH == 1, 255, 0).astype(np.uint8)
    if mode.startswith("I"):
        image = Image.fromarray(gray.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    else:
        image = Image.fromarray(gray).convert(mode)
    assert image.mode == mode
    path = saved("gray.png" if mode != "I" else "gray.tiff", image, tmp_path)
    read = predict.read_image(path)
    assert read.mode == "RGB"
    assert (np.array(read) == gray[..., None]).all()


def test_exif_rotation_is_applied(checkpoint, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me clockwise to see me upright"
    path = saved("turned.png", picture().transpose(Image.Transpose.ROTATE_90), tmp_path, exif=exif)
    assert predict.main([str(path), "--checkpoint", checkpoint, "--out", str(tmp_path)]) == 0
    assert (labels_of(tmp_path / "turned_labels.png") == TRUTH).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (9, 14), (37, 23)])
@pytest.mark.parametrize("extra", [[], ["--multi-scale"]])
def test_any_size_even_under_what_the_model_takes(checkpoint, tmp_path, size, extra):
    path = saved("plain.png", Image.new("RGB", size[::-1], SPACE.palette[2]), tmp_path)
    assert predict.main([str(path), "--checkpoint", checkpoint, "--out", str(tmp_path), *extra]) == 0
    labels = labels_of(tmp_path / "plain_labels.png")
    assert labels.shape == size
    assert (labels == 2).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (9, 14), (37, 23)])
def test_any_size_for_a_model_that_takes_multiples_only(size):
    model = nearest()
    model.size_divisor = 8
    for multi_scale in (False, True):
        labels = predict.segment(
            model, Image.new("RGB", size[::-1], SPACE.palette[2]), multi_scale=multi_scale
        )
        assert labels.shape == size
        assert (labels == 2).all()
    assert all(height % 8 == width % 8 == 0 for height, width in model.sizes)
    assert len(model.sizes) == 11


def test_images_are_resized_as_the_training_images_were():
    model = nearest(resolution=0.5)
    labels = predict.segment(model, picture().resize((56, 36), Image.Resampling.NEAREST))
    assert model.sizes == [(18, 28)]
    assert labels.shape == (36, 56)
    model.sizes.clear()
    predict.segment(model, picture().resize((56, 36)), multi_scale=True)
    assert model.sizes[::2] == [(9, 14), (14, 21), (18, 28), (27, 42), (36, 56)]


def test_images_are_resized_to_the_one_size_of_training():
    model = nearest(size=(18, 28))
    labels = predict.segment(model, picture().resize((140, 27), Image.Resampling.NEAREST))
    assert model.sizes == [(18, 28)]
    truth = np.array(Image.fromarray(TRUTH).resize((140, 27), Image.Resampling.NEAREST))
    assert labels.shape == (27, 140)
    assert (labels.numpy() == truth).mean() > 0.95  # a stripe along the borders is mixed
    model = nearest(size=(4, 12), scales=(1.0, 3.0))  # enlarged to what the model takes, as small images are
    labels = predict.segment(model, Image.new("RGB", (9, 5), SPACE.palette[2]), multi_scale=True)
    assert model.sizes[::2] == [(8, 24), (12, 36)]
    assert labels.shape == (5, 9) and (labels == 2).all()


def test_images_are_seen_in_the_windows_of_training():
    big = picture().resize((56, 36), Image.Resampling.NEAREST)
    model = nearest(windows=Windows(side=8, base_size=28, combine="exp"), scales=(0.5, 1.0))
    labels = predict.segment(model, big)  # long side 28, short side 18: windows at 0, 5, 10 and to 20
    assert model.sizes == [(8, 8)] * 4  # four at a time
    assert labels.shape == (36, 56)
    truth = np.array(Image.fromarray(TRUTH).resize((56, 36), Image.Resampling.NEAREST))
    assert (labels.numpy() == truth).mean() > 0.9
    model.sizes.clear()
    predict.segment(model, big, multi_scale=True)  # long side 14, short side 9: 2 x 3 windows; and mirrored
    assert model.sizes == [(8, 8)] * (2 * 2 + 2 * 4)
    model.sizes.clear()
    predict.segment(model, big, multi_scale=True, whole=True)
    assert len(model.sizes) == 2 * len(MULTI_SCALE) and (36, 56) in model.sizes


def test_windows_of_the_command(checkpoint, tmp_path, monkeypatch):
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"settings": {"recipe": {"windows": 8, "base_size": 0}}}, checkpoint)
    shapes = []
    forward = Nearest.forward
    monkeypatch.setattr(Nearest, "forward", lambda self, x: shapes.append(x.shape[-2:]) or forward(self, x))
    picture().save(tmp_path / "photo.png")
    arguments = [str(tmp_path / "photo.png"), "--checkpoint", checkpoint, "--out", str(tmp_path)]
    for extra, shape in (([], (8, 8)), (["--windows", "0"], (9, 14))):
        shapes.clear()
        assert predict.main([*arguments, *extra]) == 0
        assert set(shapes) == {shape}
        assert (labels_of(tmp_path / "photo_labels.png") == TRUTH).all()


def test_a_broken_image_does_not_stop_the_others(checkpoint, tmp_path, capsys):
    whole = tmp_path / "photo.png"
    picture().resize((200, 150)).save(whole)
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:200])
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    arguments = [str(p) for p in (broken, text, tmp_path / "none.png", tmp_path, whole)]
    assert predict.main([*arguments, "--checkpoint", checkpoint, "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 4
    for line, word in zip(lines, ("broken.png", "notes.txt", "none.png", str(tmp_path)), strict=True):
        assert line.startswith("error: ") and word in line
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["photo_labels.png", "photo_overlay.png"]


def test_an_input_is_never_overwritten(checkpoint, tmp_path, capsys):
    picture().save(tmp_path / "photo.png")
    picture().rotate(180).save(tmp_path / "photo_overlay.png")
    before = (tmp_path / "photo_overlay.png").read_bytes()
    arguments = [str(tmp_path / name) for name in ("photo.png", "photo_overlay.png")]
    assert predict.main([*arguments, "--checkpoint", checkpoint, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "photo_overlay.png would be overwritten" in error and error.count("\n") == 1
    assert (tmp_path / "photo_overlay.png").read_bytes() == before
    assert not (tmp_path / "photo_labels.png").exists()
    assert (tmp_path / "photo_overlay_labels.png").exists()


def test_images_of_one_name_get_files_of_their_own(checkpoint, tmp_path):
    for folder, label in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9), SPACE.palette[label]).save(tmp_path / folder / "photo.png")
    arguments = [str(tmp_path / folder / "photo.png") for folder in ("a", "b")]
    assert predict.main([*arguments, "--checkpoint", checkpoint, "--out", str(tmp_path)]) == 0
    assert (labels_of(tmp_path / "photo_labels.png") == 1).all()
    assert (labels_of(tmp_path / "photo_2_labels.png") == 2).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required"),
        (["x.png", "--checkpoint", "none.pt"], "no checkpoint at none.pt"),
        (["x.png", "--checkpoint", "CHECKPOINT", "--alpha", "2"], "2 is not between 0 and 1"),
        (["x.png", "--checkpoint", "CHECKPOINT", "--device", "toaster"], "toaster"),
        (["x.png", "--checkpoint", "CHECKPOINT", "--windows", "480"], "invalid choice: 480 (choose from"),
        (["x.png", "--checkpoint", "CHECKPOINT", "--out", "CHECKPOINT"], "final.pt"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(checkpoint, capsys, arguments, message):
    try:
        status = predict.main([checkpoint if a == "CHECKPOINT" else a for a in arguments])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
