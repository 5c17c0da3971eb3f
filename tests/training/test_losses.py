"""The loss against brute force: windows counted pixel by pixel."""

import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from segkit.training import losses
from segkit.training.losses import (
    class_presence,
    label_distribution,
    ohem_cross_entropy,
    presence_loss,
    segmentation_loss,
)

CLASSES = 4


def brute_force(labels, size):
    """Distribution and labelled share of each window of adaptive pooling, by loops."""
    batch, height, width = labels.shape
    distribution = torch.zeros(batch, CLASSES, *size)
    share = torch.zeros(batch, *size)
    for b in range(batch):
        for i in range(size[0]):
            for j in range(size[1]):
                window = labels[
                    b,
                    math.floor(i * height / size[0]) : math.ceil((i + 1) * height / size[0]),
                    math.floor(j * width / size[1]) : math.ceil((j + 1) * width / size[1]),
                ]
                labeled = window[window != 255]
                share[b, i, j] = labeled.numel() / window.numel()
                for c in range(CLASSES):
                    if labeled.numel():
                        distribution[b, c, i, j] = (labeled == c).sum() / labeled.numel()
    return distribution, share


@st.composite
def labels_and_size(draw):
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 13)), draw(st.integers(1, 13)))
    values = draw(arrays.arrays(np.int64, shape, elements=st.sampled_from([0, 1, 2, 3, 255])))
    size = (draw(st.integers(1, shape[1])), draw(st.integers(1, shape[2])))
    return torch.from_numpy(values), size


@settings(max_examples=150, deadline=None)
@given(labels_and_size())
def test_distribution_is_the_share_of_each_class_in_each_window(case):
    labels, size = case
    distribution, share = label_distribution(labels, size, num_classes=CLASSES)
    expected, expected_share = brute_force(labels, size)
    torch.testing.assert_close(distribution, expected)
    torch.testing.assert_close(share, expected_share)


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(np.int64, (2, 24, 36), elements=st.sampled_from([0, 1, 2, 3, 255])),
    st.permutations([(12, 18), (6, 9), (8, 8), (5, 7), (4, 6), (3, 3), (2, 2), (1, 1), (2, 3)]),
)
def test_coarse_sizes_merged_from_finer_ones_are_the_same(values, sizes):
    labels = torch.from_numpy(values)
    together = losses._distributions(labels, sizes, CLASSES, 255)
    for size in sizes:
        for merged, alone in zip(
            together[size], label_distribution(labels, size, num_classes=CLASSES), strict=True
        ):
            torch.testing.assert_close(merged, alone)


def test_labels_are_read_once_where_sizes_divide(monkeypatch):
    counted = []
    count = losses._count
    monkeypatch.setattr(
        losses, "_count", lambda labels, size, *rest: counted.append(size) or count(labels, size, *rest)
    )
    labels = torch.zeros(1, 96, 96, dtype=torch.int64)
    losses._distributions(labels, [(3, 3), (12, 12), (24, 24), (1, 1), (8, 8)], CLASSES, 255)
    assert counted == [(24, 24)]
    counted.clear()
    losses._distributions(labels, [(24, 24), (5, 5)], CLASSES, 255)
    assert counted == [(24, 24), (5, 5)]


def make_case(*, ignored=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (2, 16, 24), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    out = torch.randn(2, CLASSES, 16, 24, generator=generator, requires_grad=True)
    aux = {
        "spp1": torch.randn(2, CLASSES, 1, 2, generator=generator, requires_grad=True),
        "level8": torch.randn(2, CLASSES, 2, 3, generator=generator, requires_grad=True),
        "level4": torch.randn(2, CLASSES, 4, 5, generator=generator, requires_grad=True),
    }
    return {"out": out, "aux": aux}, labels


def test_total_and_parts_equal_the_formula():
    output, labels = make_case(ignored=0.45)
    total, parts = segmentation_loss(output, labels)
    main = F.cross_entropy(output["out"], labels, ignore_index=255)
    expected = {}
    masked = 0
    for name, logits in output["aux"].items():
        distribution, share = brute_force(labels, logits.shape[-2:])
        terms = []
        for b, i, j in np.ndindex(*share.shape):
            if share[b, i, j] > 0.5:
                log_p = logits[b, :, i, j].log_softmax(0)
                terms.append(-(distribution[b, :, i, j] * log_p).sum())
            else:
                masked += 1
        expected[name] = torch.stack(terms).mean()
    assert masked > 0
    assert list(parts) == ["main", "spp1", "level8", "level4"]
    torch.testing.assert_close(parts["main"], main.detach())
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value.detach())
    torch.testing.assert_close(total, 0.6 * main + 0.4 * torch.stack(list(expected.values())).mean())
    assert not any(part.requires_grad for part in parts.values())


def test_gradients_reach_every_output():
    output, labels = make_case()
    segmentation_loss(output, labels)[0].backward()
    for logits in (output["out"], *output["aux"].values()):
        assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("drop", ["no aux", "empty aux", "zero weight"])
def test_main_loss_alone_has_weight_one(drop):
    output, labels = make_case()
    weight = 0.0 if drop == "zero weight" else 0.4
    if drop == "no aux":
        del output["aux"]
    elif drop == "empty aux":
        output["aux"] = {}
    total, parts = segmentation_loss(output, labels, aux_weight=weight)
    torch.testing.assert_close(total, F.cross_entropy(output["out"], labels, ignore_index=255))
    assert list(parts) == ["main"]


def test_all_ignored_is_zero_with_zero_gradient():
    output, labels = make_case()
    total, parts = segmentation_loss(output, torch.full_like(labels, 255))
    total.backward()
    assert total.item() == 0
    assert all(part.item() == 0 for part in parts.values())
    for logits in (output["out"], *output["aux"].values()):
        assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_chunked_is_the_loss_of_upsampled_logits():
    """To the rounding of a sum in another order; the batch has images with more and with fewer labels."""
    output, labels = make_case()
    labels[1, :12] = 255
    small = torch.randn(2, CLASSES, 4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    whole = F.interpolate(small, labels.shape[1:], mode="bilinear")
    plain, plain_parts = segmentation_loss({**output, "out": whole}, labels)
    leaves = (small, *output["aux"].values())
    expected = torch.autograd.grad(plain, leaves)
    total, parts = segmentation_loss({**output, "out": small}, labels, chunked=True)
    torch.testing.assert_close(total, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts, plain_parts, rtol=1e-6, atol=0)
    for found, wanted in zip(torch.autograd.grad(total, leaves), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_chunked_with_all_ignored_is_zero_with_zero_gradient():
    output, labels = make_case()
    total, _ = segmentation_loss(output, torch.full_like(labels, 255), chunked=True)
    total.backward()
    assert total.item() == 0
    assert torch.equal(output["out"].grad, torch.zeros_like(output["out"]))


@pytest.mark.parametrize(("ignored_pixels", "counts"), [(7, True), (8, False), (9, False)])
def test_a_window_counts_if_more_than_half_is_labeled(ignored_pixels, counts):
    labels = torch.ones(1, 4, 4, dtype=torch.int64)
    labels.view(-1)[:ignored_pixels] = 255
    logits = torch.randn(1, CLASSES, 1, 1)
    _, parts = segmentation_loss({"out": torch.zeros(1, CLASSES, 4, 4), "aux": {"spp1": logits}}, labels)
    expected = -logits.log_softmax(1)[0, 1, 0, 0].item() if counts else 0.0
    assert parts["spp1"].item() == pytest.approx(expected)


def test_half_precision_logits_are_summed_in_float32():
    output, labels = make_case()
    half = {"out": output["out"].bfloat16(), "aux": {k: v.bfloat16() for k, v in output["aux"].items()}}
    total, _ = segmentation_loss(half, labels)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, segmentation_loss(output, labels)[0], rtol=0, atol=0.02)


def test_errors_name_what_is_wrong():
    output, labels = make_case()
    with pytest.raises(ValueError, match=r"label 7 is neither a class \(0 to 3\) nor 255"):
        segmentation_loss(output, torch.full_like(labels, 7))
    with pytest.raises(ValueError, match="int64"):
        label_distribution(labels.to(torch.uint8), (2, 2), num_classes=CLASSES)
    with pytest.raises(ValueError, match="do not fit"):
        segmentation_loss(output, labels[:, :8])
    with pytest.raises(ValueError, match="of one batch"):
        segmentation_loss(output, labels[:1], chunked=True)


def plain_losses(logits, labels):
    """Cross-entropy of each pixel in numpy, the largest first."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    pixels = []
    for b, i, j in np.ndindex(*labels.shape):
        label = labels[b, i, j]
        pixels.append(0.0 if label == 255 else -np.log(probabilities[b, label, i, j]))
    return np.sort(pixels)[::-1]


def plain_ohem(pixels, threshold, share):
    """The loss by its definition."""
    least = max(1, int(len(pixels) * share))
    hard = pixels[pixels > threshold]
    return hard.mean() if len(hard) > least else pixels[:least].mean()


@st.composite
def ohem_cases(draw):
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    labels = draw(arrays.arrays(np.int64, shape, elements=st.sampled_from([0, 1, 2, 3, 255])))
    values = st.floats(-8, 8, width=32)
    logits = draw(arrays.arrays(np.float64, (shape[0], CLASSES, *shape[1:]), elements=values))
    threshold = draw(st.sampled_from([0.01, 0.3, 1.0, 5.0]))
    return logits, labels, threshold, draw(st.sampled_from([1 / 100, 1 / 16, 0.5, 1.0]))


@settings(max_examples=200, deadline=None)
@given(ohem_cases())
def test_ohem_is_its_definition(case):
    logits, labels, threshold, share = case
    pixels = plain_losses(logits, labels)
    assume(np.abs(pixels - threshold).min() > 1e-4)  # which side float32 rounds to is another question
    loss = ohem_cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), threshold=threshold, share=share
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain_ohem(pixels, threshold, share), rel=1e-4, abs=1e-5)


def two_kinds_of_pixels(hard):
    """Logits and labels (1, 8, 8): the loss is 2 in the first ``hard`` pixels and 0.1 in the others."""
    losses_ = torch.full((64,), 0.1)
    losses_[:hard] = 2.0
    right = torch.exp(-losses_).view(1, 1, 8, 8)
    logits = torch.cat([right, 1 - right], 1).log().requires_grad_()
    return logits, torch.zeros(1, 8, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("hard", "expected", "learning"),
    [
        (10, 2.0, 10),  # more than 64 / 16: all of them, and no other
        (5, 2.0, 5),
        (4, 2.0, 4),  # not more than 4: the 4 largest
        (2, (2 * 2.0 + 2 * 0.1) / 4, 4),  # a share of easy pixels fills up
        (0, 0.1, 4),
    ],
)
def test_ohem_learns_from_the_hard_pixels_alone(hard, expected, learning):
    logits, labels = two_kinds_of_pixels(hard)
    loss = ohem_cross_entropy(logits, labels, threshold=0.3, share=1 / 16)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    touched = logits.grad.abs().sum(1).flatten() > 0
    assert touched.sum() == learning
    assert touched[:hard].all()


def test_ohem_counts_ignored_pixels_in_the_share():
    logits, labels = two_kinds_of_pixels(3)
    labels.view(-1)[3:] = 255  # 3 pixels are labelled; a sixteenth of 64 is 4
    assert ohem_cross_entropy(logits, labels).item() == pytest.approx(3 * 2.0 / 4, rel=1e-5)


def test_ohem_with_all_ignored_is_zero_with_zero_gradient():
    output, labels = make_case()
    loss = ohem_cross_entropy(output["out"], torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(output["out"].grad, torch.zeros_like(output["out"]))


@pytest.mark.parametrize(("size", "least"), [(768, 294_912), (1024, 524_288)])
def test_ohem_share_of_the_papers_batches(size, least):
    """The 16th part of 8 crops of 768 x 768 and of 1024 x 1024 (Sec. 4.2)."""
    assert losses._least_hard(8 * size * size, 1 / 16) == least


def test_ohem_as_the_main_loss():
    output, labels = make_case()

    def main_loss(logits, labels, *, ignore_index):
        return ohem_cross_entropy(logits, labels, threshold=2.0, share=0.1, ignore_index=ignore_index)

    plain, plain_parts = segmentation_loss(output, labels)
    total, parts = segmentation_loss(output, labels, main_loss=main_loss)
    expected = ohem_cross_entropy(output["out"], labels, threshold=2.0, share=0.1)
    torch.testing.assert_close(parts["main"], expected.detach())
    assert parts["main"] > plain_parts["main"]
    torch.testing.assert_close(total - plain, 0.6 * (parts["main"] - plain_parts["main"]))
    assert {name: part for name, part in parts.items() if name != "main"} == {
        name: part for name, part in plain_parts.items() if name != "main"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, r"share is a part of the pixels, above 0 and at most 1 .*, not 0\.0"),
        ({"share": 1.5}, r"not 1\.5"),
        ({"threshold": -0.1}, r"threshold is a loss in nats, 0 or more, not -0\.1"),
    ],
)
def test_ohem_refuses_other_numbers(options, message):
    output, labels = make_case()
    with pytest.raises(ValueError, match=message):
        ohem_cross_entropy(output["out"], labels, **options)


def test_ohem_refuses_labels_that_do_not_fit():
    output, labels = make_case()
    with pytest.raises(ValueError, match="do not fit"):
        ohem_cross_entropy(output["out"], labels[:, :8])
    with pytest.raises(ValueError, match="label 7 is neither a class"):
        ohem_cross_entropy(output["out"], torch.full_like(labels, 7))
    with pytest.raises(ValueError, match="leave out chunked or main_loss"):
        segmentation_loss(output, labels, chunked=True, main_loss=ohem_cross_entropy)


def presence_case():
    output, labels = make_case()
    labels[0][labels[0] == 2] = 1  # the first image lacks class 2, and the second 0 and 3
    labels[1][(labels[1] == 0) | (labels[1] == 3)] = 255
    logits = torch.randn(2, CLASSES, generator=torch.Generator().manual_seed(3), requires_grad=True)
    return {**output, "presence": logits}, labels


def test_presence_is_whether_a_labelled_pixel_has_the_class():
    _, labels = presence_case()
    assert class_presence(labels, num_classes=CLASSES).tolist() == [[1, 1, 0, 1], [0, 1, 1, 0]]


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.int64, (2, 3, 4), elements=st.sampled_from([0, 1, 2, 3, 255])))
def test_presence_is_that_of_a_set(values):
    found = class_presence(torch.from_numpy(values), num_classes=CLASSES)
    for row, image in zip(found, values, strict=True):
        assert {int(c) for c in row.nonzero()} == set(np.unique(image).tolist()) - {255}


def test_fastfcns_loss_is_the_sum_of_its_parts():
    output, labels = presence_case()
    total, parts = segmentation_loss(output, labels, aux_weight=0.2, aux_loss="plain", presence_weight=0.3)
    main = F.cross_entropy(output["out"], labels, ignore_index=255)
    auxiliary = {
        name: F.cross_entropy(
            F.interpolate(logits, (16, 24), mode="bilinear", align_corners=True), labels, ignore_index=255
        )
        for name, logits in output["aux"].items()
    }
    p = output["presence"].sigmoid()
    target = torch.tensor([[1.0, 1, 0, 1], [0, 1, 1, 0]])
    presence = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert list(parts) == ["main", *output["aux"], "presence"]
    torch.testing.assert_close(parts["main"], main.detach())
    for name, value in (*auxiliary.items(), ("presence", presence)):
        torch.testing.assert_close(parts[name], value.detach())
    mean = sum(auxiliary.values()) / 3
    torch.testing.assert_close(total, main + 0.2 * mean + 0.3 * presence)
    total.backward()
    for logits in (output["out"], *output["aux"].values(), output["presence"]):
        assert logits.grad.abs().sum() > 0


def test_presence_goes_with_soft_auxiliary_losses_and_without_any():
    output, labels = presence_case()
    plain, _ = segmentation_loss(output, labels)
    total, parts = segmentation_loss(output, labels, presence_weight=0.5)
    torch.testing.assert_close(total, plain + 0.5 * parts["presence"])
    total, parts = segmentation_loss(output, labels, aux_weight=0, presence_weight=0.5)
    assert list(parts) == ["main", "presence"]
    torch.testing.assert_close(total, parts["main"] + 0.5 * parts["presence"])


def test_an_image_without_labels_says_nothing_about_its_classes():
    output, labels = presence_case()
    labels[1] = 255
    alone = presence_loss(output["presence"][:1], labels[:1])
    torch.testing.assert_close(presence_loss(output["presence"], labels), alone)


@pytest.mark.parametrize("chunked", [False, True])
def test_fastfcns_loss_with_all_ignored_is_zero_with_zero_gradient(chunked):
    output, labels = presence_case()
    total, parts = segmentation_loss(
        output, torch.full_like(labels, 255), aux_loss="plain", presence_weight=0.2, chunked=chunked
    )
    total.backward()
    assert total.item() == 0
    assert all(part.item() == 0 for part in parts.values())
    for logits in (output["out"], *output["aux"].values(), output["presence"]):
        assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_plain_auxiliary_losses_go_with_a_chunked_main_loss():
    output, labels = presence_case()
    options = {"aux_loss": "plain", "presence_weight": 0.2}
    plain, plain_parts = segmentation_loss(output, labels, **options)
    total, parts = segmentation_loss(output, labels, chunked=True, **options)
    torch.testing.assert_close(total, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts, plain_parts, rtol=1e-6, atol=0)


def test_errors_of_fastfcns_loss_say_what_to_do():
    output, labels = presence_case()
    with pytest.raises(ValueError, match="aux_loss is 'soft' or 'plain', not 'hard'"):
        segmentation_loss(output, labels, aux_loss="hard")
    del output["presence"]
    message = (
        "presence_weight=0.2, but the model gives no 'presence', only 'out', 'aux': take one with an Enc"
    )
    with pytest.raises(ValueError, match=message):
        segmentation_loss(output, labels, presence_weight=0.2)
    with pytest.raises(ValueError, match=r"one row for each of the labels \(2, 16, 24\), not \(1, 4\)"):
        presence_loss(torch.zeros(1, CLASSES), labels)
    with pytest.raises(ValueError, match="label 7 is neither a class"):
        class_presence(torch.full_like(labels, 7), num_classes=CLASSES)
