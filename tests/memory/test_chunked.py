"""The chunked loss is the whole one: value and gradients; it takes less memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segkit.measure import peak_memory
from segkit.memory import chunked_cross_entropy, chunked_step
from segkit.models import build


def whole(logits, labels):
    size = tuple(labels.shape[-2:])
    upsampled = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled.float(), labels, ignore_index=255)


def value_and_gradient(loss, logits, labels):
    logits = logits.clone().requires_grad_()
    value = loss(logits, labels)
    value.backward()
    return value.detach(), logits.grad


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 4),
    small=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    factor=st.tuples(st.sampled_from([1, 2, 3.5, 4]), st.sampled_from([1, 2, 4])),
    ignored=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_equal_to_the_whole_loss(images, small, factor, ignored):
    generator = torch.Generator().manual_seed(0)
    size = [max(1, round(side * f)) for side, f in zip(small, factor, strict=True)]
    logits = torch.randn(images, 5, *small, generator=generator)
    labels = torch.randint(0, 5, (images, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    labels[0, 0, 0] = 1  # the whole loss of no pixel is NaN; see the next test
    expected, found = (value_and_gradient(f, logits, labels) for f in (whole, chunked_cross_entropy))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_images_with_unequal_numbers_of_labels_are_not_averaged_one_by_one():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[1, 1:] = 255
    mean_of_means = torch.stack([whole(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]).mean()
    loss = chunked_cross_entropy(logits, labels)
    torch.testing.assert_close(loss, whole(logits, labels))
    assert abs(loss - mean_of_means) > 0.01


def test_nothing_labelled():
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.full((2, 8, 8), 255)
    value, gradient = value_and_gradient(chunked_cross_entropy, logits, labels)
    assert value == 0
    assert not gradient.any()


def test_another_label_can_be_ignored():
    logits, labels = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 1] = 2
    expected = F.cross_entropy(logits, labels, ignore_index=2)
    torch.testing.assert_close(chunked_cross_entropy(logits, labels, ignore_index=2), expected)


def test_the_step_has_the_gradients_of_the_default_step():
    from segkit.measure.peak import default_step

    gradients = []
    for step in (default_step, chunked_step):
        torch.manual_seed(0)
        model = build("ladder-resnet18-32-4", num_classes=4)
        result = step(model, torch.randn(2, 3, 65, 97), torch.randint(0, 4, (2, 65, 97)))
        loss = result[0] if isinstance(result, tuple) else result
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        error = (gradients[1][name] - expected).norm() / expected.norm()
        assert error < 1e-5, name


def test_papers_leanest_row_needs_less():
    model = build("ldn121-32-4", device="meta", recompute="unit,stem,td,tu")
    whole_loss, chunked = (
        peak_memory(model, 6, (768, 768), step=step, optimizer="amsgrad").total / 2**20
        for step in (None, chunked_step)
    )
    assert whole_loss == pytest.approx(2187, abs=1)
    assert chunked == pytest.approx(1848, abs=1)


def test_bf16_logits_are_compared_in_float32():
    logits, labels = torch.randn(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.int64)
    loss = chunked_cross_entropy(logits.bfloat16(), labels)
    torch.testing.assert_close(loss, whole(logits.bfloat16().float(), labels))


@pytest.mark.parametrize(
    ("logits", "labels"), [((2, 3, 4, 4), (1, 8, 8)), ((3, 4, 4), (8, 8)), ((2, 3, 4, 4), (2, 1, 8, 8))]
)
def test_shapes_that_do_not_fit(logits, labels):
    with pytest.raises(ValueError, match=r"Expected logits \(B, C, h, w\) and labels \(B, H, W\)"):
        chunked_cross_entropy(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


def test_labels_must_be_int64_tensors():
    for labels in (torch.zeros(1, 8, 8, dtype=torch.uint8), [[0]]):
        with pytest.raises(TypeError, match="Expected floating-point logits and int64 labels"):
            chunked_cross_entropy(torch.zeros(1, 3, 4, 4), labels)


def test_a_model_that_always_upsamples():
    with pytest.raises(TypeError, match=r"Conv2d.forward has no full_size=False.*chunked_cross_entropy"):
        chunked_step(torch.nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4).long())
