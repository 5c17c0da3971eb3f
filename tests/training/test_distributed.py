"""Several processes: the same figures as one."""

import json

import pytest
import torch

from segkit import models
from segkit.evaluation.inference import evaluate
from segkit.training import distributed, state
from segkit.training.distributed import World, choose_device, join


@pytest.fixture(scope="module")
def two_processes(run_process, tmp_path_factory):
    """The folder of a run that torchrun started on two processes, and what each of them measured.

    Beside it lies what `gradients` reads: starting processes takes longer than what they do.
    """
    out = tmp_path_factory.mktemp("two") / "run"
    status, output = run_process(out, "--plain", "--gradients", processes=2)
    assert status == 0, output
    return out, [json.loads(out.with_name(f"run.{rank}.json").read_text()) for rank in range(2)]


def test_evaluation_on_two_processes_is_that_of_one(tiny, two_processes):
    out, measured = two_processes
    assert [entry["size"] for entry in measured] == [2, 2]
    model = tiny.TinyNet(norm=False)
    model.load_state_dict(state.load(out / "final.pt")["model"])
    alone = evaluate(model, tiny.TinySet(5, "val", seed=1))  # 5 images: the processes have 3 and 2
    for entry in measured:
        assert entry["matrix"] == alone.matrix.tolist()
    assert json.loads((out / "result.json").read_text())["evaluation"]["miou"] == alone.miou


def test_gradients_are_those_of_the_whole_batch(tiny, two_processes, tmp_path):
    """Without batch norm and ignored pixels, a batch split in two has the losses of the whole one."""
    out, _ = two_processes
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    alone = tiny.run_tiny(tmp_path / "one", plain=True)
    together = [entry["loss"] for entry in steps if entry["kind"] == "step"]
    assert len(together) == 9
    torch.testing.assert_close(together, [entry["loss"] for entry in alone.steps], rtol=1e-5, atol=0)
    assert together[-1] < together[0]


def test_only_the_main_process_writes(two_processes):
    out, _ = two_processes
    assert sorted(path.name for path in out.iterdir()) == [
        "final.pt",
        "log.jsonl",
        "result.json",
        "settings.json",
    ]


def test_the_batch_is_split_evenly_or_refused():
    cpu = torch.device("cpu")
    assert World(0, 4, cpu).share_of_batch(16) == 4
    with pytest.raises(ValueError, match=r"batch_size 16 .* over 3: choose a multiple of 3"):
        World(0, 3, cpu).share_of_batch(16)


def test_alone_nothing_is_exchanged():
    with join("cpu") as world:
        assert (world.rank, world.size, world.main) == (0, 1, True)
        assert world.agree(True, False) == (True, False)
        assert world.gather("x") == ["x"]
        assert world.share("x") == "x"
        model = torch.nn.BatchNorm2d(2)
        assert world.wrap(model) is model
        assert distributed.synchronize_batchnorm(model, world) is model
        torch.testing.assert_close(world.mean(torch.ones(2)), torch.ones(2))


def test_batchnorm_is_synchronized_on_gpus_only():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    two = World(0, 2, torch.device("cuda", 0))
    assert isinstance(distributed.synchronize_batchnorm(model, two)[0], torch.nn.SyncBatchNorm)
    two = World(0, 2, torch.device("cpu"))
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    assert not isinstance(distributed.synchronize_batchnorm(model, two)[0], torch.nn.SyncBatchNorm)


@pytest.mark.parametrize("name", ["ladder-resnet18-32-4", "ldn121-32-4", "vnet"])
def test_the_kits_networks_run_with_synchronized_batchnorm(name):
    """In eval mode, which needs no GPU."""
    model = models.build(name, num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)["out"]
        found = distributed.synchronize_batchnorm(model, World(0, 2, torch.device("cuda", 0)))(images)["out"]
    assert not any(type(module) is torch.nn.BatchNorm2d for module in model.modules())
    assert torch.equal(found, expected)


def test_norms_in_parts_cannot_be_synchronized():
    model = models.build("ldn121-32-4", num_classes=3, recompute="unit,nested", device="meta")
    with pytest.raises(ValueError, match="leave out nested, or train on one GPU"):
        distributed.synchronize_batchnorm(model, World(0, 2, torch.device("cuda", 0)))
    assert distributed.synchronize_batchnorm(model, World(0, 2, torch.device("cpu"))) is model


@pytest.fixture(scope="module")
def gradients(two_processes):
    """What each of two processes has after two steps, by network and then by what spared memory."""
    out, _ = two_processes
    return [torch.load(out.with_name(f"run.{rank}.pt")) for rank in range(2)]


@pytest.mark.parametrize("network", ["all heads", "one head"])
def test_sparing_memory_on_two_processes_gives_the_gradients_of_not_sparing(gradients, network):
    """One head: DistributedDataParallel then has to find the parameters that take no part."""
    for mine, other in (gradients, gradients[::-1]):
        plain, recomputed, chunked = (
            mine[network]["plain"],
            mine[network]["recompute"],
            mine[network]["chunked"],
        )
        assert plain["losses"][0] != other[network]["plain"]["losses"][0]  # each has images of its own
        assert recomputed["losses"] == plain["losses"]
        torch.testing.assert_close(chunked["losses"], plain["losses"], rtol=1e-5, atol=0)
        for step in range(2):
            assert 0 < len(plain["gradients"][step]) == len(recomputed["gradients"][step])
            for key, expected in plain["gradients"][step].items():
                assert torch.equal(other[network]["plain"]["gradients"][step][key], expected)  # averaged
                assert torch.equal(recomputed["gradients"][step][key], expected)
        for key, expected in plain["gradients"][0].items():
            error = (chunked["gradients"][0][key] - expected).norm() / expected.norm().clamp(min=1e-6)
            assert error < 1e-5, key
        for key, expected in plain["buffers"].items():
            assert torch.equal(recomputed["buffers"][key], expected)


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == torch.device("cpu")
    with pytest.raises(ValueError, match="no GPU here: use cpu"):
        choose_device("cuda")
    with pytest.raises(ValueError, match="no device is called 'gpu'"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(None, local_rank=1) == torch.device("cuda", 1)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda", local_rank=1, processes=2) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"'cuda:0' would be that of all 2 processes, .* use cuda$"):
        choose_device("cuda:0", local_rank=1, processes=2)
    with pytest.raises(ValueError, match="no GPU 5: this machine has 2"):
        choose_device("cuda:5")
