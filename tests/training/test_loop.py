"""The loop: it learns, stops, resumes bit for bit, and names what broke."""

import contextlib
import json
import logging
import sys

import pytest
import torch
from torch import nn

from segkit import models, training
from segkit.data.pairs import PairDataset
from segkit.data.sampling import collate
from segkit.data.streets import VERSION
from segkit.data.transforms import normalize
from segkit.evaluation.windows import Windows
from segkit.training import Recipe, distributed, inputs, loop, ongoing, recipe, setup, state, train
from segkit.training.distributed import World
from segkit.training.ongoing import TrainingError

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def go(tiny, tmp_path):
    """Trains the tiny network from fixed initial weights; keywords of the recipe in ``changes``."""

    def run(changes=(), **options):
        torch.manual_seed(0)
        options = {
            "model": tiny.TinyNet(),
            "train_set": tiny.TinySet(),
            "val_set": tiny.TinySet(5, "val", 1),
            **options,
        }
        return train(tiny.tiny_recipe(**dict(changes)), out_dir=tmp_path / "run", device="cpu", **options)

    return run


def losses(run):
    return [(entry["step"], entry["loss"], entry["parts"]) for entry in run.steps]


def test_a_run_learns_and_leaves_all_it_should(go, tmp_path):
    seen = []
    run = go({"epochs": 12}, on_step=seen.append)
    assert run.finished
    assert run.epochs[-1]["loss"] < 0.6 * run.epochs[0]["loss"]
    assert run.evaluation.miou > 0.8  # a constant prediction has about 1/9
    assert run.evaluation.images == 5
    assert seen == run.steps
    assert [entry["step"] for entry in run.steps] == list(range(1, 37))
    assert set(run.steps[0]) == {"kind", "epoch", "step", "loss", "parts", "lr", "seconds"}
    assert set(run.steps[0]["parts"]) == {"main", "level8"}
    assert run.steps[0]["loss"] == pytest.approx(
        0.6 * run.steps[0]["parts"]["main"] + 0.4 * run.steps[0]["parts"]["level8"], rel=1e-6
    )
    assert all(0 <= entry["miou"] <= 1 for entry in run.epochs)
    assert not run.model.training

    assert sorted(p.name for p in run.folder.iterdir()) == [
        "final.pt",
        "log.jsonl",
        "result.json",
        "settings.json",
    ]
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [line for line in lines if line["kind"] == "step"] == run.steps
    assert [line for line in lines if line["kind"] == "epoch"] == run.epochs
    result = json.loads((run.folder / "result.json").read_text())
    assert result["evaluation"]["miou"] == run.evaluation.miou
    assert result["split"] == "val"
    final = state.load(run.folder / "final.pt")
    for key in ("model_name", "model_options", "num_classes", "space", "mean", "std", "settings"):
        assert key in final
    assert final["space"]["classes"] == ["red", "green", "blue"]
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(final["model"][name], tensor)


def test_the_same_run_twice_is_the_same(go):
    first = go()
    second = go()
    assert losses(first) == losses(second)
    assert losses(go({"seed": 1}, overwrite=True)) != losses(first)


def read_log(folder):
    """The entries of a log, without the times."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def test_kill_9_in_mid_epoch_and_resume_bit_for_bit(tiny, run_process, one_thread, tmp_path):
    """The network has dropout and batch norm, so random state and averages must come back too.

    The killed run has loading workers and the others have none, which must make no difference.
    """
    tiny.run_tiny(tmp_path / "whole")
    whole = read_log(tmp_path / "whole")
    assert len(whole) == 9 + 3

    status, output = run_process(tmp_path / "killed", "--kill-at", 5, "--workers", 2)  # in epoch 2 of 3
    assert status == -9, output
    assert read_log(tmp_path / "killed") == whole[: 5 + 1]
    assert state.latest(tmp_path / "killed")[1]["step"] == 4

    resumed = tiny.run_tiny(tmp_path / "killed", resume=True)
    assert resumed.finished
    assert read_log(tmp_path / "killed") == whole
    final = [state.load(tmp_path / name / "final.pt")["model"] for name in ("whole", "killed")]
    assert all(torch.equal(final[0][key], final[1][key]) for key in final[0])


def test_max_minutes_stops_at_a_checkpoint_and_resume_goes_on(go, tmp_path):
    whole = losses(go())
    stopped = go(max_minutes=0)
    assert not stopped.finished
    assert stopped.evaluation is None
    assert len(stopped.steps) == 1
    parts = [stopped]
    for _ in range(20):
        parts.append(go(resume=True, max_minutes=0))
        if len(parts[-1].steps) == 9:
            break
    final = go(resume=True)
    assert final.finished
    assert losses(final) == whole
    assert losses(go(resume=True)) == whole  # a finished run, asked for again
    assert go(resume=True).evaluation.miou == final.evaluation.miou


def test_a_truncated_checkpoint_is_skipped(go, tmp_path, caplog):
    whole = losses(go())

    def stop(entry):
        if entry["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(checkpoint_steps=2, on_step=stop)
    last, newest = state.checkpoints(tmp_path / "run")
    assert (last.name, newest.name) == ("checkpoint-00000003.pt", "checkpoint-00000004.pt")
    newest.write_bytes(newest.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING, "segkit"):
        resumed = go(resume=True)
    assert "checkpoint-00000004.pt" in caplog.text
    assert losses(resumed) == whole


def test_resume_before_the_first_checkpoint_starts_at_the_beginning(go, tmp_path):
    def stop(entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(on_step=stop)
    with pytest.raises(FileExistsError, match="unfinished run"):
        go()
    resumed = losses(go(resume=True))
    assert resumed == losses(go())


def test_resume_with_other_settings_is_refused(go):
    go(max_minutes=0)
    with pytest.raises(ValueError, match=r"learning_rate: here 0\.5, there 0\.01"):
        go({"learning_rate": 0.5}, resume=True)
    with pytest.raises(ValueError, match="limit_train: here 8, there 0"):
        go(limit_train=8, resume=True)


def test_resume_with_another_number_of_processes_is_refused(go, monkeypatch):
    go(max_minutes=0)
    two = contextlib.nullcontext(World(0, 2, torch.device("cpu")))
    monkeypatch.setattr(distributed, "join", lambda device: two)
    with pytest.raises(ValueError, match="processes: here 2, there 1"):
        go(resume=True)


def test_settings_say_which_generator_painted_the_streets(tiny):
    limits = {"limit_train": None, "limit_val": 3}
    settings = setup.run_settings(training.recipe("ldn_streets"), None, None, limits, 2)
    assert (settings["streets_version"], settings["processes"]) == (VERSION, 2)
    assert (settings["limit_train"], settings["limit_val"]) == (0, 3)
    assert "streets_version" not in setup.run_settings(tiny.tiny_recipe(), None, None, limits)


def test_a_damaged_final_file_is_made_again_from_the_last_checkpoint(go, tmp_path, monkeypatch, caplog):
    whole = go()
    weights = state.load(whole.folder / "final.pt")["model"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ongoing.OngoingRun, "keep_result", stop)  # final.pt is there, and the checkpoints still
        go()
    final = tmp_path / "run" / "final.pt"
    final.write_bytes(final.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING, "segkit"):
        resumed = go(resume=True)
    assert "final.pt" in caplog.text
    assert losses(resumed) == losses(whole)
    assert resumed.evaluation.miou == whole.evaluation.miou
    again = state.load(final)["model"]
    assert all(torch.equal(again[key], weights[key]) for key in weights)

    final.write_bytes(b"")  # of a finished run, with no checkpoint left
    with pytest.raises(state.CheckpointError, match=r"final\.pt .* start over with --overwrite"):
        go(resume=True)


class Poisoned(nn.Module):
    """A network whose output, or gradient, becomes NaN at one step."""

    def __init__(self, network, step, how):
        super().__init__()
        self.network, self.at, self.how, self.calls = network, step, how, 0

    def forward(self, x, *, auxiliary=None):
        output = self.network(x, auxiliary=auxiliary)
        if self.training:
            self.calls += 1
            if self.calls == self.at and self.how == "loss":
                output["out"] = output["out"] * float("nan")
            elif self.calls == self.at:
                output["out"].register_hook(lambda gradient: gradient * float("nan"))
        return output


def test_nan_loss_names_the_files_and_keeps_the_good_checkpoint(go, tiny, tmp_path):
    with pytest.raises(
        TrainingError, match=r"loss of step 5 is nan, in a batch of train_\d+, train_"
    ) as caught:
        go(model=Poisoned(tiny.TinyNet(), 5, "loss"), checkpoint_steps=2)
    assert sum(f"train_{index:03d}" in str(caught.value) for index in range(12)) == 4
    _, content = state.latest(tmp_path / "run")
    assert content["step"] == 4
    assert all(torch.isfinite(t).all() for t in content["model"].values() if t.is_floating_point())


def test_weights_that_broke_without_a_nan_loss_are_not_saved(go, tiny, tmp_path):
    with pytest.raises(TrainingError, match=r"NaN or infinite values after step 4, a batch of train_"):
        go(model=Poisoned(tiny.TinyNet(), 4, "gradient"), checkpoint_steps=2)
    assert state.latest(tmp_path / "run")[1]["step"] == 3


def test_limits_and_splits(go):
    run = go({"epochs": 1}, limit_train=5, limit_val=2)
    assert len(run.steps) == 2  # 5 images in batches of 4, the last one filled up
    assert run.evaluation.images == 2
    run = go({"epochs": 4, "val_every": 2})
    assert ["miou" in entry for entry in run.epochs] == [False, True, False, True]


def test_multi_scale_is_measured_when_asked_for(go):
    run = go({"epochs": 1, "multi_scale": True})
    assert run.multi_scale.scales == (0.5, 0.75, 1.0, 1.5, 2.0)
    assert run.multi_scale.flip
    assert go({"epochs": 1}, overwrite=True).multi_scale is None


def test_without_auxiliary_weight_the_heads_do_not_run(go):
    run = go({"epochs": 1, "aux_weight": 0.0})
    assert set(run.steps[0]["parts"]) == {"main"}
    assert run.steps[0]["loss"] == run.steps[0]["parts"]["main"]


@pytest.mark.parametrize("aux_weight", [0.0, 0.4])
def test_an_own_model_need_not_know_auxiliary(go, aux_weight):
    class Plain(nn.Conv2d):
        def forward(self, x):
            return {"out": super().forward(x)}

    run = go({"epochs": 1, "aux_weight": aux_weight}, model=Plain(3, 3, 1))
    assert set(run.steps[0]["parts"]) == {"main"}


def test_momentum_is_that_of_the_recipe_but_not_in_an_own_model(tiny):
    recipe = tiny.tiny_recipe(model="ladder-resnet18-32-4", bn_momentum=0.3)
    momenta = {
        m.momentum for m in setup.prepare_model(recipe, None, 3, CPU).modules() if hasattr(m, "momentum")
    }
    assert momenta == {0.3}
    assert setup.prepare_model(recipe, tiny.TinyNet(), 3, CPU).norm.momentum == 0.1  # torch's default


def test_cudnn_tries_out_algorithms_in_steps_alone(monkeypatch):
    for before in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
        with pytest.raises(KeyError), loop._fastest_convolutions(True):
            assert torch.backends.cudnn.benchmark
            raise KeyError
        assert torch.backends.cudnn.benchmark is before
        with loop._fastest_convolutions(False):
            assert torch.backends.cudnn.benchmark is before


def test_a_crop_larger_than_the_images_is_warned_of(go, capfd, caplog):
    go({"epochs": 1, "crop": (32, 64)})  # wider, but not higher
    assert caplog.text == ""
    go({"epochs": 1, "crop": (64, 64), "dataset": "camvid"}, overwrite=True)
    assert "crop of 64x64 is larger than the images (32x48)" in caplog.text
    assert "ldn_camvid_half_ri is for CamVid at 360x480" in caplog.text
    assert len(caplog.records) == 1


def test_a_split_measured_with_and_without_instances_is_read_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(PairDataset, "verify", lambda self: read.append((self.split, self.instances)))
    recipe = training.recipe(
        "ldn_streets",
        model="ladder-resnet18-32-4",
        instances=True,
        dataset_options={"size": (32, 64), "train": 2, "val": 1},
        crop=(32, 64),
        batch_size=2,
    )
    train(recipe, data_dir=tmp_path / "data", out_dir=tmp_path / "run", device="cpu", max_minutes=0)
    assert read == [("train", False), ("val", True)]


def test_batchnorm_is_exact_at_the_end(go, tiny):
    run = go({"epochs": 1, "scale": (1.0, 1.0), "flip": 0.0})
    images = normalize(collate([tiny.TinySet()[i] for i in range(12)])["image"])
    features = run.model.first(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(run.model.norm.running_mean, features.mean(1))
    torch.testing.assert_close(run.model.norm.running_var, features.var(1))
    decayed = go({"epochs": 1, "scale": (1.0, 1.0), "flip": 0.0, "exact_batchnorm": False})
    assert not torch.allclose(decayed.model.norm.running_mean, features.mean(1), atol=1e-3)


def test_rates_follow_the_cosine_and_the_divisor(tiny):
    recipe = tiny.tiny_recipe(epochs=10, learning_rate=0.4, min_learning_rate=0.1)
    model = setup.prepare_model(recipe, tiny.TinyNet(), 3, CPU)
    optimizer = setup.make_optimizer(model, recipe)
    assert all(group["amsgrad"] for group in optimizer.param_groups)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    fresh, pretrained = optimizer.param_groups
    assert {id(p) for p in pretrained["params"]} == {id(p) for p in model.first.parameters()}
    for epoch, rate in ((0, 0.4), (5, 0.25)):
        assert setup.set_rate(optimizer, recipe, epoch) == pytest.approx(rate)
        assert fresh["lr"] == pytest.approx(rate)
        assert pretrained["lr"] == pytest.approx(rate / 4)


def test_rate_is_in_the_log(go):
    run = go({"epochs": 2, "learning_rate": 0.02})
    assert [entry["lr"] for entry in run.epochs] == pytest.approx([0.02, 0.01])


def test_poly_lowers_the_rate_after_each_step(go):
    run = go({"schedule": "poly", "poly_power": 2.0, "learning_rate": 0.02, "min_learning_rate": 0.01})
    expected = [0.01 + 0.01 * (1 - step / 9) ** 2 for step in range(9)]
    assert [entry["lr"] for entry in run.steps] == pytest.approx(expected)
    assert [entry["lr"] for entry in run.epochs] == [run.steps[step]["lr"] for step in (2, 5, 8)]


def test_adam_is_another_optimizer(go, tiny):
    recipe = tiny.tiny_recipe(optimizer="adam", betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1)
    optimizer = setup.make_optimizer(tiny.TinyNet(), recipe)
    for group in optimizer.param_groups:
        assert (group["amsgrad"], group["betas"], group["eps"]) == (False, (0.8, 0.99), 1e-6)
        assert group["weight_decay"] == 0.1
    assert losses(go({"optimizer": "adam"})) != losses(go())


def test_poly_and_adam_resume_in_mid_epoch_bit_for_bit(go):
    changes = {"schedule": "poly", "optimizer": "adam"}
    whole = go(changes)
    assert len(go(changes, max_minutes=0).steps) == 1
    resumed = go(changes, resume=True)
    assert losses(resumed) == losses(whole)
    assert [entry["lr"] for entry in resumed.steps] == [entry["lr"] for entry in whole.steps]


REGSEG = {
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "decay_batchnorm": False,
    "schedule": "poly",
    "warmup_steps": 5,
    "short_side": (24, 64),
    "rand_augment": 2,
    "class_uniform": 0.5,
    "drop_last": True,
    "loss": "ohem",
    "exact_batchnorm": False,
    "data_seed": 7,
}  # of 14 images: 3 epochs of 3 batches


def test_regsegs_protocol_learns(go, tiny):
    run = go({**REGSEG, "epochs": 12, "class_uniform": 0.0, "rand_augment": 0}, train_set=tiny.TinySet(14))
    assert len(run.steps) == 12 * 3  # and not 4: the last 2 of 14 images do not fill a batch
    assert run.evaluation.miou > 0.6  # a constant prediction has about 1/9
    assert run.epochs[-1]["loss"] < 0.7 * run.epochs[0]["loss"]
    assert set(run.steps[0]["parts"]) == {"main", "level8"}


def test_regsegs_protocol_resumes_in_mid_epoch_bit_for_bit(go, tiny, one_thread):
    """Momentum, warm-up and class-uniform order come back; workers before and after make no difference."""
    options = {"train_set": tiny.TinySet(14), "checkpoint_steps": 2}
    whole = go(REGSEG, **options)

    def stop(entry):
        if entry["step"] == 5:  # in epoch 2 of 3, one step after a checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(REGSEG, workers=2, on_step=stop, **options)
    assert state.latest(whole.folder)[1]["step"] == 4
    resumed = go(REGSEG, resume=True, **options)
    assert losses(resumed) == losses(whole)
    assert [entry["lr"] for entry in resumed.steps] == [entry["lr"] for entry in whole.steps]
    weights = whole.model.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in resumed.model.state_dict().items())


def test_warmup_multiplies_the_schedule(go):
    run = go({"schedule": "poly", "warmup_steps": 6, "warmup_factor": 0.25, "learning_rate": 0.02})
    poly = [0.02 * (1 - step / 9) ** 0.9 for step in range(9)]
    rising = [min(1, 0.25 + 0.75 * step / 6) for step in range(9)]
    assert [entry["lr"] for entry in run.steps] == pytest.approx(
        [a * b for a, b in zip(poly, rising, strict=True)]
    )
    run = go({"schedule": "cosine", "warmup_steps": 2, "warmup_factor": 0.0, "learning_rate": 0.02})
    assert [entry["lr"] for entry in run.steps[:3]] == pytest.approx([0, 0.01, 0.02])


def test_a_run_that_ends_before_it_is_warm_is_warned_of(go, caplog):
    with caplog.at_level(logging.WARNING, "segkit"):
        go({"warmup_steps": 8})
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING, "segkit"):
        go({"warmup_steps": 9})
    assert "the rate rises over 9 steps, and the run ends after 9; give fewer warmup_steps" in caplog.text


def test_regsegs_rate_at_step_1500():
    made = recipe("regseg_cityscapes")
    optimizer = setup.make_optimizer(nn.Conv2d(1, 1, 1), made)
    epoch, batch = divmod(1500, 371)  # floor(2975 / 8)
    assert f"{setup.set_rate(optimizer, made, epoch, batch, 371):.5f}" == "0.02740"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02740, abs=5e-6)


def test_sgd_is_plain_momentum(go, tiny):
    made = tiny.tiny_recipe(optimizer="sgd", momentum=0.8, weight_decay=0.01, learning_rate=0.5)
    weight = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        weight.weight.fill_(2.0)
    optimizer = setup.make_optimizer(weight, made)
    assert type(optimizer) is torch.optim.SGD
    momentum, value = 0.0, 2.0
    for gradient in (1.0, -3.0, 0.5):
        weight.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        momentum = 0.8 * momentum + gradient + 0.01 * value
        value -= 0.5 * momentum
        assert weight.weight.item() == pytest.approx(value)
    assert losses(go({"optimizer": "sgd"})) != losses(go())


class ManyNorms(nn.Module):
    """Normalization layers of all kinds, by names that do not say so, among layers that do."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.two = nn.Sequential(nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.InstanceNorm2d(8, affine=True))
        self.three = nn.ModuleList([nn.SyncBatchNorm(8), nn.RMSNorm(8), nn.BatchNorm1d(8, affine=False)])
        self.bn = nn.Conv2d(8, 8, 1)  # the authors of RegSeg go by the name
        self.shared = self.bn

    def pretrained_parameters(self):
        return list(self.one.parameters())


def test_normalization_is_found_by_type():
    model = ManyNorms()
    found = {id(p) for p in setup.normalization_parameters(model)}
    assert len(found) == 2 * 5 + 1  # RMS norm has no shift
    convolutions = {id(p) for layer in (model.one[0], model.bn) for p in layer.parameters()}
    assert found | convolutions == {id(p) for p in model.parameters()}
    assert not found & convolutions


@pytest.mark.parametrize(
    "name", ["ldn_streets", "vnet_streets", "regseg_cityscapes", "regseg_camvid_finetune"]
)
@pytest.mark.parametrize("decay_batchnorm", [True, False])
def test_each_parameter_is_optimized_once(name, decay_batchnorm, tiny):
    made = recipe(name, decay_batchnorm=decay_batchnorm)
    for model in (tiny.TinyNet(), tiny.TinyNet(norm=False), ManyNorms(), build(made)):
        groups = setup.make_optimizer(model, made).param_groups
        members = [id(p) for group in groups for p in group["params"]]
        assert sorted(members) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        spared = {id(p) for p in setup.normalization_parameters(model)}
        lower = {id(p) for p in getattr(model, "pretrained_parameters", list)()}
        for group in groups:
            assert group["params"]
            for parameter in group["params"]:
                decayed = decay_batchnorm or id(parameter) not in spared
                assert group["weight_decay"] == (made.weight_decay if decayed else 0)
                assert group["divisor"] == (made.pretrained_lr_divisor if id(parameter) in lower else 1)


def build(made):
    return models.build(made.model, device="meta", **made.model_options)


def test_what_is_decayed_in_regseg():
    optimizer = setup.make_optimizer(build(recipe("regseg_cityscapes")), recipe("regseg_cityscapes"))
    counted = [(len(g["params"]), sum(p.numel() for p in g["params"])) for g in optimizer.param_groups]
    assert counted == [(150, 3_308_119), (128, 26_832)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0]


class TwoRates(nn.Module):
    """A backbone, half of it pre-trained and a part of that frozen, and a head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.backbone[0].bias.requires_grad_(False)
        self.head = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))

    def pretrained_parameters(self):
        return [*self.backbone[0].parameters(), *self.head[0].parameters()]


def rates(model, optimizer):
    """By a parameter's name, the rate it is trained at."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_all_but_the_backbone_may_learn_faster(tiny):
    model = TwoRates()
    made = tiny.tiny_recipe(head_lr_multiplier=10.0, pretrained_lr_divisor=4.0, learning_rate=0.4)
    optimizer = setup.make_optimizer(model, made)
    assert setup.set_rate(optimizer, made, 0) == pytest.approx(0.4)
    found = rates(model, optimizer)
    expected = dict.fromkeys(("backbone.1.weight", "backbone.1.bias"), 0.4)
    expected |= {"backbone.0.weight": 0.1, "backbone.2.weight": 0.4, "backbone.2.bias": 0.4}
    expected |= {"head.0.weight": 1.0, "head.0.bias": 1.0, "head.1.weight": 4.0, "head.1.bias": 4.0}
    assert found == pytest.approx(expected)  # backbone.0.bias is frozen: it is in no group
    with pytest.raises(ValueError, match="TinyNet has no part called backbone: give head_lr_multiplier=1"):
        setup.make_optimizer(tiny.TinyNet(), made)
    with pytest.raises(ValueError, match="all parameters of TwoRates are frozen: there is nothing to train"):
        setup.make_optimizer(model.requires_grad_(False), made)


def test_the_rate_is_in_proportion_to_the_batch(tiny):
    made = tiny.tiny_recipe(
        learning_rate=0.4, lr_batch=16, schedule="poly", min_learning_rate=0.02, poly_power=1.0, epochs=2
    )
    assert made.batch_size == 4
    optimizer = setup.make_optimizer(tiny.TinyNet(), made)
    found = [setup.set_rate(optimizer, made, epoch, batch, 5) for epoch in (0, 1) for batch in range(5)]
    assert found == pytest.approx([0.02 + 0.08 * (1 - step / 10) for step in range(10)])


FAMILIES = [
    *(("ldn_cityscapes", {}), ("vnet_streets", {}), ("ddrnet_cityscapes", {})),
    ("regseg_streets", {}),
    ("vnet_streets", {"model": "pspnet-r50"}),
    ("denseaspp_streets", {}),
    ("denseaspp_cityscapes", {}),  # frozen
    ("denseaspp_streets", {"model": "denseaspp121", "model_options": {}}),
    *(("fastfcn_pcontext", {"model": f"fastfcn-r50-{head}-jpu"}) for head in ("enc", "aspp", "psp")),
    *(("fastfcn_streets", {"model": f"fastfcn-r50-enc-{up}"}) for up in ("none", "bilinear", "fpn", "jpu")),
]


@pytest.mark.parametrize(("name", "changes"), FAMILIES)
def test_every_trained_parameter_of_a_family_is_optimized_once(name, changes):
    """FastFCN's authors first left out the JPU, which cost three points."""
    made = recipe(name, **changes)
    model = build(made)
    members = [p for group in setup.make_optimizer(model, made).param_groups for p in group["params"]]
    assert len({id(p) for p in members}) == len(members) > 0
    assert {id(p) for p in members} == {id(p) for p in model.parameters() if p.requires_grad}


def test_fastfcns_jpu_and_heads_learn_ten_times_faster():
    made = recipe("fastfcn_pcontext", batch_size=8)
    model = build(made)
    optimizer = setup.make_optimizer(model, made)
    setup.set_rate(optimizer, made, 0, 0, 624)
    found = rates(model, optimizer)
    parts = {name.partition(".")[0] for name in found}
    assert parts == {"backbone", "up", "head", "aux"}
    for name, rate in found.items():
        assert rate == pytest.approx(0.0005 if name.startswith("backbone.") else 0.005), name
    assert all(group["weight_decay"] == 1e-4 for group in optimizer.param_groups)


def test_a_frozen_backbone_is_not_optimized():
    made = recipe("denseaspp_cityscapes")
    model = models.build(made.model, num_classes=20, device="meta", **made.model_options)
    optimizer = setup.make_optimizer(model, made)
    assert not any(name.startswith("backbone.") for name in rates(model, optimizer))
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == 2_252_820


FASTFCN = {
    "model": "fastfcn-r50-enc-jpu",
    "model_options": {"width": 4},
    "augmentation": "fastfcn",
    "short_side": (32, 40),
    "crop": (32, 32),
    "blur": 0.5,
    "aux_loss": "plain",
    "aux_weight": 0.2,
    "presence_weight": 0.3,
    "optimizer": "sgd",
    "head_lr_multiplier": 10.0,
    "exact_batchnorm": False,
    "windows": 32,
    "base_size": 40,
    "multi_scale": True,
    "eval_scales": "0.5,1",
    "val_every": 9,
    "epochs": 1,
}


def test_fastfcns_protocol_trains_and_is_measured_in_windows(go):
    run = go(FASTFCN, model=None, limit_val=1)
    assert len(run.steps) == 3
    for step in run.steps:
        parts = step["parts"]
        assert set(parts) == {"main", "fcn", "presence"}
        expected = parts["main"] + 0.2 * parts["fcn"] + 0.3 * parts["presence"]
        assert step["loss"] == pytest.approx(expected, rel=1e-5)
    for evaluation in (run.evaluation, run.multi_scale):
        assert evaluation.windows == Windows(side=32, base_size=40, combine="exp")
    assert (run.evaluation.scales, run.evaluation.flip) == ((1.0,), False)
    assert (run.multi_scale.scales, run.multi_scale.flip) == ((0.5, 1.0), True)


def test_whole_images_are_measured_without_windows(tiny):
    assert setup.windows(tiny.tiny_recipe(base_size=100)) is None


def test_auxiliary_heads_run_where_a_loss_needs_them(tiny):
    model = tiny.TinyNet()
    for weights, expected in (((0.0, 0.0), {"auxiliary": False}), ((0.0, 0.2), {}), ((0.4, 0.0), {})):
        made = tiny.tiny_recipe(aux_weight=weights[0], presence_weight=weights[1])
        assert setup.forward_options(model, made) == expected


def test_a_chunked_loss_of_fastfcn_would_be_another():
    made = recipe("fastfcn_streets", chunked_loss=True)
    with pytest.raises(ValueError, match=r"without aligning their corners, which FastFCN does.* leave out"):
        setup.forward_options(build(made), made)


def test_presence_needs_a_model_that_predicts_it(go):
    with pytest.raises(ValueError, match=r"presence_weight=0\.2, but the model gives no 'presence'"):
        go({"presence_weight": 0.2})


def test_outputs_without_a_loss_are_refused_on_several_processes(tiny):
    output = {"out": 1, "aux": {}, "presence": 1}
    both = tiny.tiny_recipe(aux_weight=0.2, presence_weight=0.2)
    setup.check_all_used(output, both)
    setup.check_all_used({"out": 1}, tiny.tiny_recipe(aux_weight=0.0))
    with pytest.raises(
        ValueError, match="presence_weight=0, but the model gives 'presence' too, and on several"
    ):
        setup.check_all_used(output, tiny.tiny_recipe(aux_weight=0.2))
    with pytest.raises(ValueError, match="aux_weight=0, but the model gives 'aux' too"):
        setup.check_all_used(output, tiny.tiny_recipe(aux_weight=0.0, presence_weight=0.2))


def test_one_image_size_is_trained_and_measured(go, tiny, monkeypatch):
    sets = {"train": tiny.TinySet(), "val": tiny.TinySet(2, "val", 1, ignored=False)}
    monkeypatch.setattr(inputs.data, "load", lambda name, split, **options: sets[split])
    changes = {"image_size": (24, 40), "crop": (24, 40), "epochs": 1}
    run = go(changes, train_set=None, val_set=None)
    assert run.evaluation.matrix.sum() == 2 * 24 * 40
    assert state.load(run.folder / "final.pt")["image_size"] == [24, 40]
    assert setup.instance_sizes(recipe("ldn_cityscapes")) is not None
    assert setup.instance_sizes(recipe("ldn_cityscapes", image_size=(512, 1024))) is None


SMALL = {"model": "ladder-resnet18-32-4", "exact_batchnorm": False, "learning_rate": 1e-3, "val_every": 9}


@pytest.fixture
def trained(tiny, tmp_path):
    """What a run of a small network on three classes leaves as its final.pt."""
    made, dataset = tiny.tiny_recipe(**SMALL), tiny.TinySet()
    torch.manual_seed(5)
    model = setup.prepare_model(made, None, 3, CPU)
    described = setup.description(made, dataset, setup.run_settings(made, None, dataset, {}))
    return state.save(tmp_path / "there.pt", described | {"model": model.state_dict()})


def prepared(path, num_classes, **changes):
    """The model of a run that starts from a checkpoint."""
    made = Recipe(**{"name": "next", **SMALL, "weights": str(path), **changes})
    torch.manual_seed(1)
    return setup.prepare_model(made, None, num_classes, CPU).state_dict()


def test_weights_of_another_run(trained, caplog):
    there = state.load(trained)["model"]
    with caplog.at_level(logging.WARNING, "segkit"):
        here = prepared(trained, 3)
    assert caplog.text == ""
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())


def test_only_classifiers_for_other_classes_start_afresh(trained, caplog):
    there = state.load(trained)["model"]
    with caplog.at_level(logging.WARNING, "segkit"):
        here = prepared(trained, 5)
    fresh = {name for name, tensor in here.items() if tensor.shape != there[name].shape}
    assert fresh
    assert all(len(here[name]) == 5 and len(there[name]) == 3 for name in fresh)
    assert all(name in caplog.text for name in fresh)
    assert f"{trained} gives the model all its weights but" in caplog.text
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items() if name not in fresh)
    plain = prepared("none", 5)
    assert all(torch.equal(here[name], plain[name]) for name in fresh)  # as the seed makes them


def test_a_run_from_weights_goes_on_without_their_file(go, trained, tmp_path):
    changes = {**SMALL, "epochs": 1, "weights": str(trained)}
    options = {"model": None, "limit_val": 1, "limit_train": 8}  # two steps
    whole = go(changes, **options)
    fresh = go({**changes, "weights": "none"}, overwrite=True, **options)
    assert losses(whole) != losses(fresh)
    go(changes, max_minutes=0, overwrite=True, **options)
    trained.unlink()
    assert losses(go(changes, resume=True, **options)) == losses(whole)


@pytest.mark.parametrize(
    ("changes", "num_classes", "message"),
    [
        ({"model": "vnet"}, 3, "is of the model 'ladder-resnet18-32-4' .* this run's is 'vnet'"),
        (
            {"model_options": {"spp_grids": (4, 2, 1)}},
            3,
            "this run's is .* with {'spp_grids': \\[4, 2, 1\\]}",
        ),
    ],
)
def test_weights_of_another_model_are_refused(trained, changes, num_classes, message):
    with pytest.raises(ValueError, match=message):
        prepared(trained, num_classes, **changes)


def test_weights_that_do_not_fit_are_refused(trained, tmp_path):
    saved = state.load(trained)
    name = next(name for name, tensor in saved["model"].items() if tensor.ndim == 4)
    wrong = {**saved["model"], name: saved["model"][name][:, :1]}
    state.save(tmp_path / "wrong.pt", {**saved, "model": wrong})
    with pytest.raises(ValueError, match=rf"weights: {name} is \[.*\] in .* here, and it is no classifier"):
        prepared(tmp_path / "wrong.pt", 3)
    del wrong[name]
    state.save(tmp_path / "wrong.pt", {**saved, "model": wrong})
    with pytest.raises(ValueError, match=f"only one has {name}; was the file written by another version"):
        prepared(tmp_path / "wrong.pt", 3)
    (tmp_path / "wrong.pt").write_bytes(trained.read_bytes()[:500])
    with pytest.raises(ValueError, match="truncated"):
        prepared(tmp_path / "wrong.pt", 3)


FROZEN = {"backbone": "small", "growth": 4}


def test_a_random_backbone_that_never_learns_leaves_no_run(go, tiny, tmp_path):
    changes = {"model": "denseaspp-student4", "model_options": FROZEN}
    with pytest.raises(ValueError, match=r"denseaspp-student4 is frozen.* weights='imagenet', .*'frozen': F"):
        go(changes, model=None)
    assert not (tmp_path / "run").exists()
    setup.check_weights(tiny.tiny_recipe(**changes), tiny.TinyNet())  # your own model is your own affair
    changes["model_options"] = {**FROZEN, "frozen": False}
    setup.check_weights(tiny.tiny_recipe(**changes), None)
    setup.check_weights(recipe("denseaspp_cityscapes"), None)


@pytest.mark.parametrize("head", ["psp", "aspp"])
def test_a_model_without_presence_leaves_no_run(go, tmp_path, head):
    changes = {**FASTFCN, "model": f"fastfcn-r50-{head}-jpu"}
    with pytest.raises(ValueError, match=rf"presence_weight=0\.3 .* fastfcn-r50-{head}-jpu does not predict"):
        go(changes, model=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "own", "error", "message"),
    [
        (
            {"weights": "no.pt"},
            False,
            FileNotFoundError,
            "weights: there is no file no.pt; give the final.pt",
        ),
        ({"weights": "no.pt"}, True, ValueError, "weights='no.pt' is for the recipe's model, not for one of"),
        (
            {"weights": "", "name": "fine"},
            False,
            ValueError,
            "fine starts from a .* names none: python -m segkit.train fine --weights runs/RUN/final.pt",
        ),
    ],
)
def test_weights_that_cannot_be_had_leave_no_run(go, tiny, tmp_path, changes, own, error, message):
    with pytest.raises(error, match=message):
        go(changes, model=tiny.TinyNet() if own else None)
    assert not (tmp_path / "run").exists()


def test_data_seed_alone_decides_the_batches(go):
    def names(**changes):
        seen = []
        fetch, loop_fetch = (
            loop._fetch,
            lambda waiting, *rest: seen.extend(waiting[0][1]) or fetch(waiting, *rest),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "_fetch", loop_fetch)
            go({"epochs": 1, **changes})
        return seen

    plain = names(seed=3)
    assert len(plain) == 12
    assert names(seed=4, data_seed=3) == plain
    assert names(seed=3, data_seed=4) != plain


LADDER = {"exact_batchnorm": False, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("name", "labels"),
    [("ladder-resnet18-32-4", "stem,block,tu"), ("ldn121-32-4", "unit,stem,td,tu")],
)
def test_recomputing_changes_nothing_that_is_learned(go, name, labels):
    changes = {**LADDER, "model": name, "epochs": 1, "val_every": 2}
    options = {"model": None, "limit_val": 1}
    plain = go(changes, **options)
    again = go({**changes, "recompute": labels}, **options)
    assert again.model.segment.chosen == set(labels.split(","))
    assert len(losses(plain)) == 3
    assert losses(again) == losses(plain)
    weights = plain.model.state_dict()  # running averages and batch counters too
    assert all(torch.equal(tensor, weights[key]) for key, tensor in again.model.state_dict().items())


@pytest.mark.parametrize("aux_weight", [0.4, 0.0])
def test_a_chunked_loss_is_the_same_loss(go, monkeypatch, aux_weight):
    sizes, chunked_cross_entropy = [], training.losses.chunked_cross_entropy

    def seen(logits, labels, **options):
        sizes.append((tuple(logits.shape), tuple(labels.shape)))
        return chunked_cross_entropy(logits, labels, **options)

    monkeypatch.setattr(training.losses, "chunked_cross_entropy", seen)
    changes = {**LADDER, "model": "ladder-resnet18-32-4", "epochs": 1, "aux_weight": aux_weight}
    options = {"model": None, "limit_val": 1}
    plain, chunked = go(changes, **options), go({**changes, "chunked_loss": True}, **options)
    assert sizes == 3 * [((4, 3, 8, 12), (4, 32, 48))]
    for mine, theirs in zip(chunked.steps, plain.steps, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["parts"] == pytest.approx(theirs["parts"], rel=1e-5)


def test_a_run_may_go_on_with_less_memory(go):
    changes = {**LADDER, "model": "ladder-resnet18-32-4", "epochs": 1}
    options = {"model": None, "limit_val": 1}
    whole = go(changes, **options)
    go(changes, max_minutes=0, **options)
    assert losses(go({**changes, "recompute": "block,tu"}, resume=True, **options)) == losses(whole)
    go(changes, max_minutes=0, **options)
    chunked = go({**changes, "chunked_loss": True}, resume=True, **options)
    assert [entry["loss"] for entry in chunked.steps] == pytest.approx(
        [entry["loss"] for entry in whole.steps], rel=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunked_loss": True}, r"TinyNet\.forward has no keyword full_size.* leave out chunked_loss$"),
        ({"recompute": "unit"}, "recompute='unit' is for the recipe's model, not for one of your own"),
    ],
)
def test_an_own_model_that_cannot_spare_memory_leaves_no_run(go, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        go(changes)
    assert not (tmp_path / "run").exists()


def test_progress_bar_only_where_it_can_be_seen(go, capfd, monkeypatch):
    go({"epochs": 1})
    assert capfd.readouterr().err == ""
    pytest.importorskip("tqdm")
    go({"epochs": 1}, progress=True)
    assert "epoch 1/1" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    go({"epochs": 1}, progress=True)
    assert capfd.readouterr().err == ""


def test_losses_wait_on_the_device_for_a_few_steps(tiny):
    """What a GPU does, on CPU tensors: several steps are fetched at once, in order."""
    waiting = [
        ({"loss": torch.tensor(float(n)), "main": torch.tensor(2.0 * n)}, [f"f{n}"]) for n in (1, 2, 3)
    ]

    class Stand:
        world, where = CPU, "here"

    fetched = list(loop._fetch(waiting, 7, Stand()))
    assert fetched == [(5, 1.0, {"main": 2.0}), (6, 2.0, {"main": 4.0}), (7, 3.0, {"main": 6.0})]
    waiting[1][0]["loss"].fill_(float("inf"))
    with pytest.raises(TrainingError, match="step 6 is inf, in a batch of f2;"):
        list(loop._fetch(waiting, 7, Stand()))
