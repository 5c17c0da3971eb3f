import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from segkit.evaluation.inference import predict
from segkit.evaluation.windows import FASTFCN_SCALES, Windows, sliding_scores

BLACK = (-2.0, -1.5, -1.0)


def images(*size, batch=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def network(kernel=3, scale=1.0):
    """Logits for 4 classes; with a kernel of 3 they depend on the neighborhood, with 1 they do not."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, kernel, padding=kernel // 2)
    return torch.no_grad()(lambda x: scale * conv(x))


def as_released(logits, image, windows, *, scales=(1.0,), flip=False, black=BLACK):
    """The release's rule step by step, with plain exp, sum and count in double precision."""
    height, width = image.shape[-2:]
    total = 0
    for scale in scales:
        long = math.ceil(windows.base_size * scale)
        ratio = long / max(height, width)
        h, w = (int(side * ratio + 0.5) if side != max(height, width) else long for side in (height, width))
        resized = F.interpolate(image.double(), (h, w), mode="bilinear", align_corners=True)
        side = windows.side
        full = torch.tensor(black, dtype=torch.float64)[:, None, None].repeat(1, max(h, side), max(w, side))
        full[:, :h, :w] = resized[0]
        sums, count = torch.zeros(4, *full.shape[1:], dtype=torch.float64), torch.zeros(full.shape[1:])
        rows, columns = (math.ceil((n - side) / windows.step) + 1 for n in full.shape[1:])
        for i in range(rows):
            for j in range(columns):
                part = (
                    slice(i * windows.step, i * windows.step + side),
                    slice(j * windows.step, j * windows.step + side),
                )
                crop = torch.tensor(black, dtype=torch.float64)[:, None, None].repeat(1, side, side)
                inside = full[:, *part]
                crop[:, : inside.shape[1], : inside.shape[2]] = inside
                votes = logits(crop[None].float()).double()
                if flip:
                    votes = votes + logits(crop[None].flip(-1).float()).double().flip(-1)
                sums[:, *part] += votes.exp()[0, :, : inside.shape[1], : inside.shape[2]]
                count[part] += 1
        mean = (sums / count)[:, :h, :w]
        total = total + F.interpolate(mean[None], (height, width), mode="bilinear", align_corners=True)
    return total / total.sum(1, keepdim=True)


# sizes and positions


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 90), st.integers(1, 400), st.data())
def test_windows_cover_every_pixel_and_begin_in_the_image(side, length, data):
    windows = Windows(side=side, stride=data.draw(st.integers(0, side)))
    starts, seen = windows.starts(length), torch.zeros(length, dtype=torch.bool)
    for start in starts:
        seen[start : start + side] = True
    assert seen.all()
    assert starts[0] == 0 and starts[-1] < length
    assert all(b - a == windows.step for a, b in itertools.pairwise(starts))
    assert starts[-1] + side >= length  # the last one reaches the end …
    assert len(starts) == 1 or starts[-2] + side < length  # … and is the first that does


def test_the_releases_grid_of_a_520_pixel_image():
    windows = Windows()
    assert (windows.step, windows.starts(520), windows.starts(480)) == (320, [0, 320], [0])
    assert windows.starts(910) == [0, 320, 640]  # scale 1.75: the last window has 270 of its 480 pixels
    assert windows.starts(801) == [0, 320, 640] and windows.starts(800) == [0, 320]


def test_the_stride_is_the_float_product_that_the_release_rounds_down():
    assert all(Windows(side=s).step == int(s * (2.0 / 3.0)) for s in range(2, 3000))
    assert Windows(side=1).step == 1
    assert Windows(side=480, stride=100).step == 100


def test_the_long_side_gets_the_base_size_and_the_short_one_is_rounded():
    windows = Windows()
    assert windows.scaled_size((375, 500), 1.0) == (390, 520)
    assert windows.scaled_size((500, 334), 1.0) == (520, 347)
    assert windows.scaled_size((500, 500), 0.75) == (390, 390)
    assert windows.scaled_size((5, 8), 0.25) == (81, 130)  # 81.25
    assert Windows(base_size=10).scaled_size((1, 4), 1.0) == (3, 10)  # 2.5 goes up, not to the even 2
    assert Windows(base_size=10).scaled_size((1, 900), 1.0) == (1, 10)
    assert Windows(base_size=513).scaled_size((3, 3), 0.5) == (257, 257)  # 256.5
    native = Windows(base_size=0)
    assert native.scaled_size((1024, 2048), 1.0) == (1024, 2048)
    assert native.scaled_size((11, 1), 0.5) == (6, 1)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from(FASTFCN_SCALES))
def test_sizes_are_those_of_the_releases_arithmetic(height, width, scale):
    long = math.ceil(520 * scale)
    short = max(1, int(1.0 * min(height, width) * long / max(height, width) + 0.5))
    expected = (long, short) if height > width else (short, long)
    assert Windows().scaled_size((height, width), scale) == expected


# scores


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(7, 9), (20, 13), (24, 24)])
def test_exp_is_the_releases_rule(size, flip):
    windows = Windows(side=12, base_size=16, combine="exp", batch=3)
    how = {"scales": (0.5, 1.0, 1.75), "flip": flip, "black": BLACK}
    found = sliding_scores(network(), images(*size), windows, **how)
    expected = as_released(network(), images(*size), windows, **how)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_exp_of_logits_beyond_single_precision_stays_finite_and_in_order():
    """Logits in the hundreds, whose exp is infinite in single precision for some classes and 0 for others."""
    windows, how = Windows(side=12, base_size=16, combine="exp"), {"flip": True, "black": BLACK}
    large = network(scale=150.0)
    votes = large(images(16, 20)).exp()
    assert votes.isinf().any() and (votes == 0).any()
    found = sliding_scores(large, images(16, 20), windows, **how)
    expected = as_released(large, images(16, 20), windows, **how)
    assert found.isfinite().all()
    assert torch.equal(found.argmax(1), expected.argmax(1))
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("combine", ["probability", "exp"])
def test_a_constant_added_to_all_logits_changes_nothing_when_it_is_the_same_everywhere(combine):
    windows = Windows(side=12, base_size=16, combine=combine)
    model = network()
    shifted = sliding_scores(lambda x: model(x) + 500, images(9, 20), windows, scales=(0.5, 1.0))
    plain = sliding_scores(model, images(9, 20), windows, scales=(0.5, 1.0))
    torch.testing.assert_close(shifted, plain, rtol=1e-3, atol=1e-4)


def test_only_exp_lets_the_scale_with_larger_logits_outvote_the_others():
    """A network that adds 50 to all logits of one scale, so that no probability changes."""
    model, pixels = network(), images(9, 20)

    def scored(combine, scales, loud=None):
        calls = iter(range(len(scales)))  # all windows of a scale go together
        windows = Windows(side=20, base_size=0, combine=combine, batch=99)
        return sliding_scores(lambda x: model(x) + 50 * (next(calls) == loud), pixels, windows, scales=scales)

    plain = scored("probability", (1.0, 2.0))
    torch.testing.assert_close(scored("probability", (1.0, 2.0), loud=1), plain, rtol=1e-3, atol=1e-4)
    alone = scored("exp", (2.0,))
    assert not torch.allclose(scored("exp", (1.0, 2.0)), alone, atol=0.01)
    torch.testing.assert_close(scored("exp", (1.0, 2.0), loud=1), alone, rtol=1e-3, atol=1e-4)


def test_probabilities_are_averaged_where_windows_overlap():
    model, x = network(), images(8, 14)
    found = sliding_scores(model, x, Windows(side=8, base_size=0, stride=5, batch=1), black=BLACK)
    tail = torch.tensor(BLACK)[:, None, None].repeat(1, 1, 8, 8)
    tail[..., :4] = x[..., 10:]
    first, second, last = (model(crop).softmax(1) for crop in (x[..., :8], x[..., 5:13], tail))
    expected = torch.zeros(1, 4, 8, 14)
    expected[..., :8] += first
    expected[..., 5:13] += second
    expected[..., 10:] += last[..., :4]
    expected /= torch.tensor([1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 2, 2, 2, 1])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("combine", ["probability", "exp"])
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 14), st.integers(0, 14), st.integers(1, 5))
def test_a_pointwise_model_answers_as_on_the_whole_image(combine, height, width, side, stride, batch):
    model, x = network(kernel=1), images(height, width, batch=2)
    windows = Windows(side=side, base_size=0, stride=min(stride, side), combine=combine, batch=batch)
    found = sliding_scores(model, x, windows, black=BLACK)
    torch.testing.assert_close(found, model(x).softmax(1), rtol=1e-4, atol=1e-5)


def test_a_pointwise_model_answers_as_on_the_whole_resized_image():
    model, x = network(kernel=1), images(10, 15)
    windows = Windows(side=7, base_size=20)
    resized = F.interpolate(x, (13, 20), mode="bilinear", antialias=True)
    whole = F.interpolate(model(resized).softmax(1), (10, 15), mode="bilinear")
    torch.testing.assert_close(sliding_scores(model, x, windows), whole)


@pytest.mark.parametrize("flip", [False, True])
def test_one_window_of_the_images_size_is_the_whole_image(flip):
    model = nn.Conv2d(3, 4, 3, padding=1)
    model.forward = lambda x, conv=model.forward: {"out": conv(x)}
    x = images(16, 16, batch=2)
    torch.testing.assert_close(
        predict(model, x, windows=Windows(side=16, base_size=0), flip=flip), predict(model, x, flip=flip)
    )


@pytest.mark.parametrize("combine", ["probability", "exp"])
def test_how_many_windows_go_together_changes_no_score_and_bounds_the_batch(combine):
    model, seen, answers = network(), [], []

    def counting(x):
        seen.append(tuple(x.shape))
        return model(x)

    for batch in (1, 4, 100):
        windows = Windows(side=8, base_size=0, combine=combine, batch=batch)
        seen.clear()
        answers.append(sliding_scores(counting, images(20, 18, batch=2), windows, flip=True))
        assert max(shape[0] for shape in seen) == 2 * min(batch, 12)  # 4 x 3 windows of two images
        assert {shape[1:] for shape in seen} == {(3, 8, 8)}
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0])


def test_windows_are_filled_up_with_black_at_the_right_and_the_bottom():
    seen = []

    def looking(x):
        seen.append(x)
        return x

    pixels = torch.randint(1, 255, (1, 3, 5, 7), dtype=torch.uint8)
    black = [-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    sliding_scores(looking, normalize(pixels), Windows(side=8, base_size=0), black=black)
    expected = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    expected[..., :5, :7] = pixels
    torch.testing.assert_close(seen[0], normalize(expected))


def test_predict_takes_black_from_the_models_own_normalization():
    seen = []
    model = nn.Conv2d(3, 4, 1)
    model.forward = lambda x, conv=model.forward: (seen.append(x), {"out": conv(x)})[1]
    windows = Windows(side=8, base_size=0)
    predict(model, images(4, 4), windows=windows)
    model.image_mean, model.image_std = (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)
    predict(model, images(4, 4), windows=windows)
    predict(model, images(4, 4), windows=windows, mean=(0.6, 0.6, 0.6), std=(0.2, 0.2, 0.2))
    corners = [x[0, :, -1, -1].tolist() for x in seen]
    assert corners[0] == pytest.approx([-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)])
    assert corners[1] == pytest.approx([-0.2, -0.4, -0.6])
    assert corners[2] == pytest.approx([-3, -3, -3])


@pytest.mark.parametrize("combine", ["probability", "exp"])
def test_any_size_gives_scores_that_add_up_to_one(combine):
    windows = Windows(side=12, base_size=13, combine=combine)
    for size in ((1, 1), (1, 30), (41, 9)):
        scores = sliding_scores(network(), images(*size), windows, scales=FASTFCN_SCALES, flip=True)
        assert scores.shape == (1, 4, *size) and scores.dtype == torch.float32
        torch.testing.assert_close(scores.sum(1), torch.ones(1, *size))


def test_more_classes_than_are_resized_at_once():
    windows = Windows(side=9, base_size=12, combine="exp")
    torch.manual_seed(0)
    many = nn.Conv2d(3, 19, 1)
    with torch.no_grad():
        scores = sliding_scores(many, images(8, 10), windows)
        resized = F.interpolate(images(8, 10), (10, 12), mode="bilinear", align_corners=True)
        summed = F.interpolate(many(resized).exp(), (8, 10), mode="bilinear", align_corners=True)
    torch.testing.assert_close(scores, summed / summed.sum(1, keepdim=True))


def test_record_and_text_say_how_it_was_measured():
    assert Windows(combine="exp").as_dict() == {
        "side": 480,
        "base_size": 520,
        "stride": 320,
        "combine": "exp",
    }
    assert str(Windows()) == "windows of 480 px, stride 320, long side 520 px, combined as probability"
    assert "long side" not in str(Windows(base_size=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"side": 0}, "side is 0; it has to be a whole number from 1 on"),
        ({"side": 480.0}, "side is 480.0"),
        ({"side": True}, "side is True"),
        ({"base_size": -1}, "base_size is -1; it has to be a whole number from 0 on"),
        ({"stride": -5}, "stride is -5"),
        ({"batch": 0}, "batch is 0"),
        ({"side": 10, "stride": 11}, "11 px leaves gaps between windows of 10 px; give at most 10"),
        ({"combine": "mean"}, "combine is 'mean'; choose one of probability, exp"),
    ],
)
def test_windows_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Windows(**arguments)
