"""The loop: it learns, stops, resumes bit for bit, and names what broke."""

import contextlib
import json
import logging
import sys

import pytest
import torch
from torch import nn

from segkit import training
from segkit.data.pairs import PairDataset
from segkit.data.sampling import collate
from segkit.data.streets import VERSION
from segkit.data.transforms import normalize
from segkit.training import distributed, loop, ongoing, setup, state, train
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
