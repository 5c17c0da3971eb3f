"""The loss against brute force: windows counted pixel by pixel."""

import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segkit.training import losses
from segkit.training.losses import label_distribution, segmentation_loss

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
