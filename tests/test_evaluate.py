import json

import pytest
import torch
from torch import nn
from torchvision import tv_tensors

from segkit import data, evaluate, models
from segkit.data.labels import LabelSpace
from segkit.data.pairs import check_choice
from segkit.evaluation.metrics import CITYSCAPES_MEAN_SIZES

SPACE = LabelSpace(
    "toy", ("road", "car", "sky"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)), instance_classes=(1,)
)


class Toy:
    """Black images with a red corner, labeled right: one car of `size` pixels a side."""

    def __init__(self, split, *, space=SPACE, size=4, instances=False):
        self.split, self.space, self.size, self.instances = split, space, size, instances
        self.names = [f"image{i}" for i in range(3)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        labels = torch.zeros(8, 12, dtype=torch.uint8)
        labels[: self.size, : self.size] = 1
        image = torch.zeros(3, 8, 12, dtype=torch.uint8)
        image[0] = 255 * labels
        sample = {
            "image": tv_tensors.Image(image),
            "labels": tv_tensors.Mask(labels),
            "name": self.names[index],
        }
        if self.instances:
            sample["instances"] = tv_tensors.Mask(labels.int() * 26000)
        return sample


def red_or_black(*, num_classes, recompute=None):
    """Says class 1 where there is red and class 0 elsewhere."""
    model = nn.ModuleDict({"conv": nn.Conv2d(3, num_classes, 1)})
    with torch.no_grad():
        model["conv"].weight.zero_()
        model["conv"].bias.fill_(-9)
        model["conv"].weight[1, 0] = 1
        model["conv"].bias[:2] = 0
    model.forward = lambda x: {"out": model["conv"](x)}
    return model


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Data sets and a model that need no files; the opened sets and their options are kept."""
    opened = []

    def opener(space):
        def open_(split, *, data_dir, instances, size=4):
            check_choice("split", split, ("train", "val"))
            opened.append({"split": split, "data_dir": data_dir, "instances": instances, "size": size})
            return Toy(split, space=space, size=size, instances=instances)

        return open_

    def without_instances(split, *, data_dir):
        return Toy(split, space=LabelSpace("plain", SPACE.classes, SPACE.palette))

    monkeypatch.setitem(data.DATASETS, "toy", opener(SPACE))
    monkeypatch.setitem(
        data.DATASETS, "cityscapes", opener(LabelSpace("x", ("road", "car", "sky"), SPACE.palette, (), (1,)))
    )
    monkeypatch.setitem(data.DATASETS, "plain", without_instances)
    monkeypatch.setitem(
        data.DATASETS, "other", opener(LabelSpace("o", ("road", "tree", "sky"), SPACE.palette))
    )
    monkeypatch.setitem(data.DATASETS, "wide", opener(LabelSpace("w", ("a", "b"), SPACE.palette[:2])))
    monkeypatch.setitem(models.MODELS, "red-or-black", red_or_black)
    return opened


@pytest.fixture
def checkpoint(tmp_path):
    def write(**changes):
        state = {
            "model_name": "red-or-black",
            "model_options": {},
            "num_classes": 3,
            "space": {
                "name": "toy",
                "classes": ["road", "car", "sky"],
                "palette": SPACE.palette,
                "instance_classes": [1],
            },
            "model": red_or_black(num_classes=3).state_dict(),
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            **changes,
        }
        torch.save(state, tmp_path / "final.pt")
        return str(tmp_path / "final.pt")

    return write


def failure(arguments, capsys):
    """The one line that the command leaves on stderr as it ends with status 2."""
    try:
        status = evaluate.main(arguments)
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_it_prints_the_table_and_writes_json(checkpoint, tmp_path, capsys):
    target = tmp_path / "scores.json"
    target.write_text("old")
    arguments = ["--checkpoint", checkpoint(), "--dataset", "toy", "--json", str(target), "--device", "cpu"]
    assert evaluate.main(arguments) == 0
    captured = capsys.readouterr()
    assert "toy val" in captured.out and "3 images" in captured.out
    assert captured.err == ""  # no progress where nobody watches
    road = next(line for line in captured.out.splitlines() if line.startswith("road"))
    assert road.split()[:2] == ["road", "100.00"]
    values = json.loads(target.read_text())
    assert (values["miou"], values["images"], values["dataset"], values["split"]) == (1.0, 3, "toy", "val")
    assert values["iou_by_class"] == {"road": 1.0, "car": 1.0, "sky": None}
    assert values["iiou_by_class"] == {"car": 1.0}
    assert values["instance_sizes"] == {"car": 16.0}
    assert [p.name for p in tmp_path.iterdir() if "scores" in p.name] == ["scores.json"]


def test_data_set_options_and_resolution_are_those_of_the_run(checkpoint, toys, tmp_path):
    trained = {"recipe": {"dataset": "toy", "dataset_options": {"size": 6}, "final_split": "train"}}
    path, target = checkpoint(settings=trained, resolution=0.5), tmp_path / "scores.json"
    assert evaluate.main(["--checkpoint", path, "--data-dir", str(tmp_path), "--json", str(target)]) == 0
    assert toys[-1] == {"split": "train", "data_dir": tmp_path, "instances": True, "size": 6}
    values = json.loads(target.read_text())
    assert values["resolution"] == 0.5
    assert values["instance_sizes"] == {"car": 9.0}
    assert torch.tensor(values["matrix"]).sum() == 3 * 4 * 6
    arguments = [
        "--checkpoint",
        path,
        "--option",
        "size=2",
        "--resolution",
        "1",
        "--split",
        "val",
        "--limit",
        "2",
    ]
    assert evaluate.main([*arguments, "--json", str(target)]) == 0
    assert toys[-1] == {"split": "val", "data_dir": None, "instances": True, "size": 2}
    values = json.loads(target.read_text())
    assert (values["images"], values["resolution"], values["instance_sizes"]) == (2, 1, {"car": 4.0})


def test_one_image_size_is_that_of_the_run(checkpoint, tmp_path, capsys):
    target = tmp_path / "scores.json"
    arguments = ["--checkpoint", checkpoint(image_size=[16, 36]), "--dataset", "cityscapes"]
    values = scores(arguments, target)
    assert (values["image_size"], values["resolution"]) == ([16, 36], 1)
    assert torch.tensor(values["matrix"]).sum() == 3 * 16 * 36  # the labels are resized too
    assert values["instance_sizes"] == {"car": 8 * 12}  # the image's own: the benchmark's are of full images
    assert "on cityscapes val at 16x36\n" in capsys.readouterr().out
    values = scores([*arguments, "--resolution", "1"], target)
    assert values["image_size"] is None
    assert torch.tensor(values["matrix"]).sum() == 3 * 8 * 12
    assert values["instance_sizes"] == {"car": CITYSCAPES_MEAN_SIZES["car"]}
    assert (
        scores(["--checkpoint", checkpoint(image_size=[0, 0]), *arguments[2:]], target)["image_size"] is None
    )


def test_multi_scale_means_the_papers_five_scales_with_mirror_images(checkpoint, tmp_path):
    target = tmp_path / "scores.json"
    arguments = ["--checkpoint", checkpoint(), "--dataset", "toy", "--multi-scale", "--json", str(target)]
    assert evaluate.main(arguments) == 0
    values = json.loads(target.read_text())
    assert (values["scales"], values["flip"]) == ([0.5, 0.75, 1.0, 1.5, 2.0], True)


def scores(arguments, target):
    assert evaluate.main([*arguments, "--json", str(target)]) == 0
    return json.loads(target.read_text())


def test_windows_of_the_command_line(checkpoint, tmp_path, capsys):
    arguments, target = ["--checkpoint", checkpoint(), "--dataset", "toy"], tmp_path / "scores.json"
    values = scores([*arguments, "--windows", "6", "--base-size", "24", "--combine", "exp"], target)
    assert values["windows"] == {"side": 6, "base_size": 24, "stride": 4, "combine": "exp"}
    assert values["scales"] == [1.0]
    # Resizing smears red over one pixel more, and this model calls any red a car: 5 x 5 pixels for 4 x 4.
    assert values["iou_by_class"]["car"] == pytest.approx(16 / 25)
    assert "windows of 6 px, stride 4, long side 24 px, combined as exp" in capsys.readouterr().out
    values = scores([*arguments, "--windows", "6", "--multi-scale"], target)
    assert values["windows"] == {"side": 6, "base_size": 0, "stride": 4, "combine": "probability"}
    assert (values["scales"], values["flip"]) == ([0.5, 0.75, 1.0, 1.25, 1.5, 1.75], True)
    assert scores(arguments, target)["windows"] is None


def test_windows_and_scales_are_those_of_the_run(checkpoint, tmp_path):
    target = tmp_path / "scores.json"
    recipe = {"dataset": "toy", "windows": 6, "base_size": 24, "combine": "exp", "eval_scales": "0.5,1"}
    arguments = ["--checkpoint", checkpoint(settings={"recipe": recipe})]
    values = scores([*arguments, "--multi-scale"], target)
    assert values["windows"] == {"side": 6, "base_size": 24, "stride": 4, "combine": "exp"}
    assert values["scales"] == [0.5, 1.0]
    values = scores([*arguments, "--windows", "9", "--combine", "probability"], target)
    assert values["windows"] == {"side": 9, "base_size": 24, "stride": 6, "combine": "probability"}
    values = scores([*arguments, "--windows", "0", "--multi-scale"], target)
    assert (values["windows"], len(values["scales"])) == (None, 5)
    # A run on whole images has the fields too, at values that nobody chose for it.
    arguments = ["--checkpoint", checkpoint(settings={"recipe": recipe | {"windows": 0}})]
    assert scores([*arguments, "--multi-scale"], target)["scales"] == [0.5, 1.0]
    values = scores([*arguments, "--windows", "9", "--multi-scale"], target)
    assert values["windows"] == {"side": 9, "base_size": 0, "stride": 6, "combine": "probability"}
    assert len(values["scales"]) == 6


def test_full_cityscapes_is_weighed_with_the_benchmarks_sizes(checkpoint, tmp_path):
    target = tmp_path / "scores.json"
    for resolution, size in (("1", CITYSCAPES_MEAN_SIZES["car"]), ("0.5", 4.0)):
        arguments = ["--checkpoint", checkpoint(), "--dataset", "cityscapes", "--resolution", resolution]
        assert evaluate.main([*arguments, "--json", str(target)]) == 0
        assert json.loads(target.read_text())["instance_sizes"] == {"car": size}


def test_a_set_without_instances_is_scored_without_iiou(checkpoint, tmp_path):
    target = tmp_path / "scores.json"
    assert evaluate.main(["--checkpoint", checkpoint(), "--dataset", "plain", "--json", str(target)]) == 0
    assert json.loads(target.read_text())["iiou"] is None


def named(name, classes):
    """A data set's opener and a checkpoint's changes for the toy images in a space of that name."""
    space = LabelSpace(name, classes, SPACE.palette)
    fields = {"name": name, "classes": list(classes), "palette": SPACE.palette}
    return (lambda split, *, data_dir: Toy(split, space=space)), {"space": fields}


def test_the_means_that_a_space_is_quoted_in_are_shown(checkpoint, tmp_path, monkeypatch, capsys):
    target = tmp_path / "scores.json"
    for name, last in (("cityscapes20", "background"), ("pascal_context59", "sky")):
        opener, changes = named(name, ("road", "car", last))
        monkeypatch.setitem(data.DATASETS, "toy", opener)
        values = scores(["--checkpoint", checkpoint(**changes), "--dataset", "toy"], target)
        printed = capsys.readouterr().out
        if name == "cityscapes20":
            assert values["three_mious"] == {"iou20": 1.0, "iou19_official": 1.0, "iou19": 1.0}
            assert values["sixty_class_miou"] is None
            for row in ("20, with background", "19, background ignored", "19, on all pixels"):
                assert f"\n- {row} " in printed
        else:
            assert values["three_mious"] is None
            assert values["sixty_class_miou"] == pytest.approx(59 / 60)
            assert "- 60, with 0 for background   98.33" in printed


def test_wrong_input_ends_in_one_sentence(checkpoint, tmp_path, capsys):
    path = checkpoint()
    with_toy = ["--checkpoint", path, "--dataset", "toy"]
    assert "--checkpoint" in failure([], capsys)
    assert "no checkpoint at" in failure(
        ["--checkpoint", str(tmp_path / "no.pt"), "--dataset", "toy"], capsys
    )
    assert "give --dataset" in failure(["--checkpoint", path], capsys)
    assert "toy" in failure(["--checkpoint", path, "--dataset", "toyy"], capsys)
    assert "val" in failure([*with_toy, "--split", "vall"], capsys)
    assert "no option 'sise'" in failure([*with_toy, "--option", "sise=3"], capsys)
    assert "'size' is not KEY=VALUE" in failure([*with_toy, "--option", "size"], capsys)
    assert "'x' is not a whole number of at least 1" in failure([*with_toy, "--limit", "x"], capsys)
    assert "-1 is not above 0" in failure([*with_toy, "--resolution", "-1"], capsys)
    assert "'4.5' is not a whole number of pixels" in failure([*with_toy, "--windows", "4.5"], capsys)
    for option in (["--base-size", "520"], ["--combine", "exp"]):
        message = failure([*with_toy, *option], capsys)
        assert f"{option[0]} is for sliding windows; give --windows N with it" in message
    assert "invalid choice: 'mean'" in failure([*with_toy, "--windows", "4", "--combine", "mean"], capsys)
    assert "no device" in failure([*with_toy, "--device", "toaster"], capsys)
    assert "to write scores.json to" in failure(
        [*with_toy, "--json", str(tmp_path / "no" / "scores.json")], capsys
    )


def test_other_classes_than_the_data_sets_are_named(checkpoint, capsys):
    path = checkpoint()
    message = failure(["--checkpoint", path, "--dataset", "wide"], capsys)
    assert "predicts 3 classes (toy), but wide has 2 (w)" in message
    message = failure(["--checkpoint", path, "--dataset", "other"], capsys)
    assert "class 1 is 'car' to the model (toy) and 'tree' in other (o)" in message


def test_help_names_a_data_root_with_a_percent_sign(monkeypatch, capsys):
    monkeypatch.setenv("SEGKIT_DATA", "/data/50%s")
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--help"])
    assert end.value.code == 0
    assert "/data/50%s" in capsys.readouterr().out
