"""Half-precision copies of a run's weights: they load like the original and compute nearly the same."""

import pytest
import torch

from segkit.evaluation.inference import load_model, read_checkpoint
from segkit.training import export as module
from segkit.training import train
from segkit.training.export import export, main


@pytest.fixture(scope="module")
def run_folder(tiny, tmp_path_factory):
    """A run of VNet on colored squares."""
    run = train(
        tiny.tiny_recipe(model="vnet", epochs=1, aux_weight=0.0, exact_batchnorm=False),
        train_set=tiny.TinySet(),
        val_set=tiny.TinySet(2, "val", seed=1),
        out_dir=tmp_path_factory.mktemp("runs") / "vnet",
        device="cpu",
    )
    return run.folder


@pytest.fixture
def damaged(run_folder, tmp_path):
    """A function that copies the run with one weight changed."""

    def make(value):
        content = read_checkpoint(run_folder / "final.pt")
        content["model"]["logits.bias"][0] = value
        torch.save(content, tmp_path / "final.pt")
        return tmp_path

    return make


def test_a_copy_is_half_as_large_and_nearly_the_same(run_folder, tmp_path):
    path = export(run_folder, tmp_path / "weights" / "vnet.pt")
    assert path == tmp_path / "weights" / "vnet.pt"
    assert path.stat().st_size < 0.65 * (run_folder / "final.pt").stat().st_size
    (mine, space), (theirs, same_space) = load_model(path), load_model(run_folder / "final.pt")
    assert space == same_space
    assert (mine.image_mean, mine.image_std) == (theirs.image_mean, theirs.image_std)
    for name, value in theirs.state_dict().items():
        copy = mine.state_dict()[name]
        assert copy.dtype == value.dtype
        assert torch.allclose(copy, value, rtol=2**-11, atol=3e-8)
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        out, right = mine(images)["out"], theirs(images)["out"]
    assert (out - right).abs().max() < 2e-3 * right.abs().max()


def test_all_but_the_weights_stays(run_folder, tmp_path):
    copy = read_checkpoint(export(run_folder, tmp_path / "vnet.pt"))
    original = read_checkpoint(run_folder / "final.pt")
    assert list(copy) == list(original) and list(copy["model"]) == list(original["model"])
    assert {k: v for k, v in copy.items() if k != "model"} == {
        k: v for k, v in original.items() if k != "model"
    }
    kinds = {value.dtype for value in copy["model"].values()}
    assert kinds == {torch.float16, torch.int64}  # the counters of batch norm are no weights


def test_an_existing_file_is_replaced_and_no_part_is_left(run_folder, tmp_path):
    path = tmp_path / "vnet.pt"
    path.write_text("old")
    export(run_folder, path)
    assert load_model(path) and [p.name for p in tmp_path.iterdir()] == ["vnet.pt"]


def test_the_command_says_what_it_wrote(run_folder, tmp_path, capsys):
    assert main([str(run_folder), str(tmp_path / "vnet.pt")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(str(tmp_path / "vnet.pt")) and "half precision" in said
    assert main([str(tmp_path), str(tmp_path / "vnet.pt")]) == 1
    assert capsys.readouterr().err.startswith(f"error: no final.pt in {tmp_path}")
    assert "vnet_streets" in module.__doc__


def test_without_a_finished_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="name the folder of a run"):
        export(tmp_path / "nowhere", tmp_path / "vnet.pt")
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="--resume"):
        export(tmp_path, tmp_path / "elsewhere" / "vnet.pt")
    assert not (tmp_path / "elsewhere").exists()


def test_a_damaged_run(tmp_path):
    (tmp_path / "final.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        export(tmp_path, tmp_path / "elsewhere" / "vnet.pt")


@pytest.mark.parametrize(("value", "message"), [(1e6, "1e\\+06, and half"), (float("nan"), "not finite")])
def test_numbers_that_do_not_fit(damaged, tmp_path, value, message):
    with pytest.raises(ValueError, match=f"logits.bias holds .*{message}"):
        export(damaged(value), tmp_path / "elsewhere" / "vnet.pt")


def test_places_that_cannot_be_written_to(run_folder, tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        export(run_folder, tmp_path)
    with pytest.raises(ValueError, match="the run's own folder"):
        export(run_folder, run_folder / "final.pt")
    load_model(run_folder / "final.pt")  # it is as it was
