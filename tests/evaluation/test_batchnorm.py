import pytest
import torch
from torch import nn

from segkit import models
from segkit.evaluation.batchnorm import exact_statistics


def batches(*sizes, offset=100.0):
    """Batches that differ in size, mean and deviation; a large mean beside a small deviation."""
    generator = torch.Generator().manual_seed(0)
    return [
        offset + i + (1 + i) * torch.randn(b, 3, 4 + i, 5, generator=generator) for i, b in enumerate(sizes)
    ]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3),
        nn.Dropout(0.9),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )


def per_channel(tensors):
    return torch.cat([t.double().transpose(0, 1).flatten(1) for t in tensors], dim=1)  # (C, all values)


def test_the_first_layer_gets_the_exact_mean_and_variance_of_all_inputs():
    model, data = network(), batches(4, 1, 2)
    assert exact_statistics(model, data) == ["0", "3"]
    values = per_channel(data)
    torch.testing.assert_close(model[0].running_mean.double(), values.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(model[0].running_var.double(), values.var(1), rtol=1e-5, atol=0)
    # What the average of the batches' own variances would have been is far off.
    averaged = torch.stack([per_channel([b]).var(1) for b in data]).mean(0)
    assert ((averaged - values.var(1)).abs() / values.var(1) > 0.05).all()


def test_a_later_layer_gets_what_reaches_it_under_batch_statistics_without_dropout():
    model, data = network(), batches(4, 1, 2)
    exact_statistics(model, data)
    with torch.no_grad():
        inputs = []
        for batch in data:
            variance, mean = torch.var_mean(batch, (0, 2, 3), correction=0, keepdim=True)
            inputs.append(model[1]((batch - mean) / (variance + 1e-5).sqrt()))
    values = per_channel(inputs)
    torch.testing.assert_close(model[3].running_mean.double(), values.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[3].running_var.double(), values.var(1), rtol=1e-4, atol=0)


def test_one_large_batch_gives_what_small_ones_give_to_the_first_layer():
    whole, parts = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    data = torch.cat([b[..., :4, :] for b in batches(5, 4)])
    exact_statistics(whole, [data])
    exact_statistics(parts, data.split(2))
    torch.testing.assert_close(parts.running_mean, whole.running_mean)
    torch.testing.assert_close(parts.running_var, whole.running_var)
    # With a single batch, and normalized by the exact statistics, train and eval mode agree.
    torch.testing.assert_close(whole.eval()(data), whole.train()(data), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("training", [True, False])
def test_the_rest_of_the_model_stays_as_it_was(training):
    model = network().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    assert exact_statistics(model, batches(2, 2)) == ["0", "3"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.endswith(("running_mean", "running_var")), name
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_frozen_layers_and_layers_without_averages_are_left_alone():
    model = network().train()
    model[0].eval()
    model[0].running_mean.fill_(7.0)
    model.append(nn.BatchNorm2d(2, track_running_stats=False))
    model.add_module("unused", nn.Identity())
    model[-1].extra = nn.BatchNorm2d(5)  # never called
    assert exact_statistics(model, batches(3)) == ["3"]
    assert (model[0].running_mean == 7).all()
    assert not model[0].training
    assert (model[-1].extra.running_var == 1).all()


def test_a_failing_pass_changes_nothing():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        exact_statistics(model, [batches(2)[0], torch.zeros(1, 5, 4, 4)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model[2].training


def test_no_batch_and_single_values_are_refused():
    with pytest.raises(ValueError, match="no batch"):
        exact_statistics(network(), [])
    with pytest.raises(ValueError, match=r"'0' sees one value per channel, input \(1, 3, 1, 1\)"):
        exact_statistics(network(), [torch.zeros(1, 3, 1, 1)])


def test_layers_of_every_dimension_and_type():
    for layer, shape in ((nn.BatchNorm1d(3), (6, 3)), (nn.BatchNorm3d(3).double(), (2, 3, 2, 2, 2))):
        x = torch.randn(shape, dtype=layer.weight.dtype, generator=torch.Generator().manual_seed(0))
        exact_statistics(layer, [x])
        torch.testing.assert_close(layer.running_mean, per_channel([x]).mean(1).to(x.dtype))
        torch.testing.assert_close(layer.running_var, per_channel([x]).var(1).to(x.dtype))


def test_every_batch_norm_of_a_ladder_densenet_is_reached_with_and_without_checkpointing():
    torch.manual_seed(0)
    model = models.build("ldn121-32-4", num_classes=3, recompute="unit,stem,td,tu")
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert exact_statistics(model, [x]) == layers
    # One batch: each layer's mean is that of the batch, so a train-mode pass moves the averages nowhere.
    before = {name: value.clone() for name, value in model.state_dict().items() if "running_mean" in name}
    with torch.no_grad():
        model.train()(x)
    for name, value in before.items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4)
