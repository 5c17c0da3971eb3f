"""What autograd keeps of a block, counted by hooks, by hand and by the simulator; the blocks; the figures."""

import io

import pytest
import torch
import torchvision
from matplotlib.patches import Rectangle
from PIL import Image
from torch import nn

from segkit import measure, models
from segkit.models.densenet import DenseNet
from segkit.notebook import dense_plots, plots
from segkit.notebook.dense import (
    MODES,
    OneMap,
    activations_of_units,
    as_residual,
    block_weights,
    conv_weights,
    dense_block,
    dense_channels,
    eq1,
    eq2,
    kept,
    macs_per_pixel,
    mib,
    residual_block,
)

DENSE = ((6, 64, 32), (12, 128, 32), (24, 256, 32), (16, 512, 32))  # n, F_in, k of DenseNet-121
RESIDUAL = ((3, 64, 256), (4, 256, 512), (6, 512, 1024), (3, 1024, 2048))  # n, F_in, F_out of ResNet-50


@pytest.fixture(scope="module")
def networks():
    with torch.device("meta"):
        return torchvision.models.resnet50(weights=None), DenseNet(121)


def shape(channels):
    return (2, channels, 8, 6)


def randomize(module):
    """Batch norms as after some training: nothing is 0 or 1 any more."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module


# Counting -----------------------------------------------------------------------------------------


def test_table_1(networks):
    resnet, densenet = networks
    assert list(block_weights(resnet).values()) == [212_992, 1_212_416, 7_077_888, 14_942_208]
    assert list(block_weights(densenet).values()) == [364_544, 1_040_384, 3_325_952, 2_129_920]
    bare = block_weights(densenet, transitions=False)
    assert [round(count / 1e6, 3) for count in bare.values()] == [0.332, 0.909, 2.802, 2.130]


def test_the_blocks_are_those_of_the_networks(networks):
    resnet, densenet = networks
    for b, (n, f_in, k) in enumerate(DENSE, start=1):
        block = getattr(densenet, f"denseblock{b}")
        assert conv_weights(dense_block(n, f_in, k)) == conv_weights(block)
    for b, (n, f_in, f_out) in enumerate(RESIDUAL, start=1):
        assert conv_weights(residual_block(n, f_in, f_out)) == conv_weights(getattr(resnet, f"layer{b}"))


def test_equations():
    assert [eq1(n, f_out) for n, _, f_out in RESIDUAL] == [1024, 2560, 7168, 8192]
    assert [eq2(n, f_in, k) for n, f_in, k in DENSE] == [224, 480, 992, 992]


def test_macs_per_pixel_are_the_weights():
    strided = nn.Conv2d(8, 16, 3, stride=2, padding=1)  # per pixel of the output
    for block in (residual_block(2, 8, 16), dense_block(3, 8, 4), strided):
        assert macs_per_pixel(block, shape(8)) == conv_weights(block)


# What autograd keeps ------------------------------------------------------------------------------


def test_a_shared_tensor_counts_once():
    conv, norm = nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(8)
    assert kept(conv, shape(8)).by_source == {"input": 8}
    assert kept(norm, shape(8)).by_source == {"input": 8}
    for relu in (nn.ReLU(inplace=True), nn.ReLU()):
        for layers in ((norm, relu), (norm, relu, conv)):
            assert kept(nn.Sequential(*layers), shape(8)).by_source == {"input": 8, "BN-ReLU": 8}


def test_channels_are_per_pixel_of_the_output():
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    assert kept(conv, shape(8)).channels == 32, "four input pixels for each of the output"


def test_what_is_kept_of_densenet_121_and_of_residual_blocks(networks):
    resnet, densenet = networks
    found = [kept(OneMap(getattr(densenet, f"denseblock{b + 1}")), shape(DENSE[b][1])) for b in range(4)]
    assert [block.channels for block in found] == [3264, 10368, 36096, 28160]
    assert found[0].by_source == {"concatenation": 864, "BN-ReLU": 1632, "convolution": 768}
    blocks = [kept(residual_block(n, f_in, f_out), shape(f_in)).channels for n, f_in, f_out in RESIDUAL]
    assert blocks == [1920, 5632, 17408, 16384]
    actual = [kept(getattr(resnet, f"layer{b + 1}"), shape(RESIDUAL[b][1])).channels for b in range(4)]
    assert actual == [2624, 8448, 23040, 27648]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [*DENSE[:2], (24, 64, 32), (48, 64, 32), (5, 7, 3), (1, 4, 2)])
def test_hooks_agree_with_the_count_by_hand(sizes, mode):
    n, f_in, k = sizes
    assert kept(dense_block(n, f_in, k, mode=mode), shape(f_in)).channels == dense_channels(n, f_in, k)[mode]


def test_hooks_agree_with_the_simulator():
    peak = measure.peak_memory(models.build("ldn121-32-4", device="meta"), 2, (256, 256))
    for b, (n, f_in, k) in enumerate(DENSE, start=1):
        channels = kept(dense_block(n, f_in, k), shape(f_in)).channels
        by_hand = mib(channels, batch_size=2, image_size=(256, 256), stride=2 ** (b + 1)) * 2**20
        vectors = 2 * 4 * sum(f_in + i * k + 4 * k for i in range(n))  # means and deviations, float32
        found = activations_of_units(peak.alive, f"backbone.denseblock{b}")
        assert by_hand + vectors <= found <= by_hand + vectors + 4 * n * 512, "rounded up to 512 bytes each"


def test_measuring_leaves_the_module_as_it_is():
    block = randomize(dense_block(2, 8, 4, device="cpu")).eval()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    kept(block, shape(8))
    macs_per_pixel(block, shape(8))
    assert not block.training and all(parameter.grad is None for parameter in block.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize(("options", "words"), [({"mode": "cat"}, "choose 'naive'"), ({"k": 0}, "k=0")])
def test_a_wrong_block_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        dense_block(**{"n": 2, "f_in": 8, "k": 4, **options})


# Section 3.5 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [(6, 64, 32), (5, 7, 3), (1, 4, 2)])
def test_a_dense_block_is_a_residual_block(sizes, training):
    n, f_in, k = sizes
    torch.manual_seed(0)
    dense = randomize(dense_block(n, f_in, k, device="cpu").double()).train(training)
    residual = as_residual(dense)
    assert residual.training is training
    inputs = [torch.randn(2, f_in, 7, 5, dtype=torch.float64).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = [block(x) for block, x in zip((dense, residual), inputs, strict=True)]
    assert outputs[1].shape == (2, f_in + n * k, 7, 5)
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-12
    weights = torch.randn_like(outputs[0])
    for out in outputs:
        (out * weights).sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-9)
    for i, (a, b) in enumerate(zip(dense.units, residual.units, strict=True)):
        width = f_in + i * k
        reads, writes = b.reduce.conv.weight, b.write.conv.weight
        assert torch.equal(reads[:, :width], a.conv1.weight) and not reads[:, width:].any()
        assert torch.equal(writes[width : width + k], a.conv2.weight)
        assert not writes[:width].any() and not writes[width + k :].any()
        assert torch.allclose(a.norm1.running_mean, b.reduce.norm.running_mean[:width], atol=1e-12)
        assert torch.allclose(a.norm1.running_var, b.reduce.norm.running_var[:width], atol=1e-12)
        assert torch.equal(a.norm1.num_batches_tracked, b.reduce.norm.num_batches_tracked)


def test_what_the_freedom_costs():
    more = [
        conv_weights(as_residual(dense_block(*sizes))) / conv_weights(dense_block(*sizes)) for sizes in DENSE
    ]
    assert [round(factor, 1) for factor in more] == [5.9, 8.6, 11.2, 9.8]
    for (n, f_in, k), factor in zip(DENSE, more, strict=True):
        mean = f_in + (n - 1) * k / 2
        assert factor == pytest.approx(10 * (f_in + n * k) / (mean + 9 * k))


def test_as_residual_needs_whole_units():
    with torch.device("meta"):
        counted, dilated = DenseNet(121, paper_count=True), DenseNet(121, dilations=(1, 1, 2, 4))
    for block in (counted.denseblock1, dilated.denseblock4):
        with pytest.raises(ValueError, match="with a 1x1 convolution and without dilation"):
            as_residual(OneMap(block))


# Figures ------------------------------------------------------------------------------------------

KINDS = {"parameters": 2**20, "gradients": 0, "activations": 60 * 2**20, "temporaries": 2**21, "input": 5}


def every_figure():
    parts = {"input": 64.0, "BN-ReLU": 64.0}
    unit = [(64, "concatenation"), (64, "BN-ReLU"), (128, "convolution"), (128, "BN-ReLU")]
    yield dense_plots.kept_bars({"BN": {"input": 64}, "BN-ReLU": parts})
    yield dense_plots.block_flow([(64, 256), (256, 256)], [(64, 32), (96, 32), (128, 32)])
    yield dense_plots.weight_bars(
        {"a": {"B1": 1e6, "B2": 2e6}, "b": {"B1": 3e6, "B2": 4e6}}, {"a": (1.0, 2.1)}
    )
    yield dense_plots.promise_and_truth(
        ["1", "2"], {"r": [900, 2e4], "d": [300, 4e4]}, {"1": [500, 600], "2": [200, 300]}
    )
    yield dense_plots.copies([unit, unit], [64, 32])
    yield dense_plots.growth([6, 12, 24], {"naive": [36, 144, 576], "unit": [6, 12, 24]}, [6, 12, 24])
    yield dense_plots.kind_bars({"net": KINDS, "other": KINDS}, {"net": 70})
    yield dense_plots.work_against_units(
        [3, 6, 12], {"residual": [1e5, 8e5, 64e5], "dense": [1e5, 4e5, 16e5]}
    )
    figure = plots.new_figure(2.2, width=4.5)
    figure.set_layout_engine("none")
    dense_plots.draw_kept(figure, {"concatenation": 32.0, "BN-ReLU": 8.0}, {"input": 10.0, "sum": 70.0})
    yield figure


def test_every_figure_has_room_for_its_texts(recwarn, assert_room):
    for figure in every_figure():
        picture = Image.open(io.BytesIO(plots.png(figure)))
        assert picture.width in (900, 450) and picture.height < 1000
        assert_room(figure)
    assert not [str(warning.message) for warning in recwarn]


def texts(figure):
    return {text.get_text() for axis in figure.axes for text in axis.texts} | {
        axis.get_title() for axis in figure.axes
    }


def bars(axis):
    return [(patch.get_x(), patch.get_width()) for patch in axis.patches if isinstance(patch, Rectangle)]


def test_stacks_follow_each_other_and_say_their_sum():
    figure = dense_plots.kept_bars({"BN-ReLU": {"input": 64, "BN-ReLU": 32}, "conv": {"input": 7}})
    assert bars(figure.axes[0]) == [(0, 64), (64, 32), (0, 7)]
    assert {"96", "7"} <= texts(figure)
    assert "channels per pixel" in figure.axes[0].get_xlabel()


def test_the_explorer_draws_the_ratio():
    *_, figure = every_figure()
    assert "dense / residual: 50 %" in texts(figure) and {"80", "40"} <= texts(figure)


def test_units_write_behind_what_they_read():
    figure = dense_plots.block_flow([(64, 256)], [(64, 32), (96, 32)])
    left, right = figure.axes
    assert bars(left) == [(0, 64), (0, 256)]
    assert bars(right) == [(0, 64), (64, 32), (0, 64), (64, 32), (96, 32)]


def test_copies_are_drawn_to_scale():
    unit = [(64, "concatenation"), (64, "BN-ReLU"), (128, "convolution"), (128, "BN-ReLU")]
    figure = dense_plots.copies([unit, unit], [64, 32])
    assert [width for _, width in bars(figure.axes[0])] == pytest.approx([64, 64, 128, 128] * 2 + [64, 32])
    assert "equation (2): 96 channels would do, instead of 768" in texts(figure)


def test_memory_is_drawn_in_mib_beside_the_papers():
    figure = dense_plots.kind_bars({"net": KINDS}, {"net": 70})
    (axis,) = figure.axes
    assert [width for _, width in bars(axis)] == pytest.approx([1, 0, 60, 2, 5 / 2**20])
    assert axis.lines[0].get_xdata()[0] == 70 and {"simulated: 63 MiB", "paper: 70"} <= texts(figure)


def test_slopes_are_measured_at_the_end():
    figure = dense_plots.work_against_units([1, 2, 4], {"residual": [1, 1, 8], "dense": [1, 1, 4]})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [label.rpartition(" ")[2] for label in labels] == ["3.0", "2.0"]
