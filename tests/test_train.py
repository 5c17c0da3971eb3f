"""`python -m segkit.train`: options are the recipe's fields, errors are one sentence, and a run goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit import evaluate, train
from segkit.data.streets import VERSION
from segkit.evaluation.inference import load_model
from segkit.training import RECIPES, recipe

SMALL = ("--model", "ladder-resnet18-32-4")


@pytest.fixture(scope="module")
def my_images(tmp_path_factory):
    """A folder of six images and masks of 64 x 96 pixels, two classes."""
    root = tmp_path_factory.mktemp("mine")
    random = np.random.default_rng(0)
    (root / "classes.txt").write_text("dark\nbright\n")
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.kron(random.integers(0, 2, (4, 6)), np.ones((16, 16))).astype(np.uint8)
            image = (mask[..., None] * 150 + random.integers(0, 80, (64, 96, 3))).astype(np.uint8)
            Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")
            Image.fromarray(image).save(root / "images" / split / f"{index}.png")
    return root


@pytest.fixture
def command(my_images, tmp_path):
    """Runs the command on these images with a small network."""

    def run(*extra):
        arguments = ["--dataset", "folder", *SMALL, "--crop", "64x96", "--batch-size", "2", "--device", "cpu"]
        places = ["--data-dir", str(my_images), "--out-dir", str(tmp_path / "run")]
        return train.main(["ldn_streets", *arguments, *places, *extra])

    return run


def test_a_whole_run_stopped_and_resumed(command, tmp_path, capsys):
    assert command("--epochs", "2", "--max-minutes", "0") == 0
    stopped = capsys.readouterr().out
    assert "stopped after 0 of 2 epochs; --resume goes on" in stopped
    assert command("--epochs", "2", "--resume") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert "nats, mIoU" in lines[0]
    result = json.loads((tmp_path / "run" / "result.json").read_text())["evaluation"]
    assert lines[2].startswith(f"val mIoU {100 * result['miou']:.2f} %, pixel accuracy ")
    assert lines[2].endswith(f"on 2 images; weights, log and figures in {tmp_path / 'run'}")
    assert len(lines) == 3

    _, space = load_model(tmp_path / "run" / "final.pt")
    assert space.classes == ("dark", "bright")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert (settings["epochs"], settings["crop"], settings["model"]) == (2, [64, 96], "ladder-resnet18-32-4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which recipe? There is ldn_cityscapes, "),
        (["ldn_street"], "no recipe named 'ldn_street': did you mean ldn_streets"),
        (["ldn_streets", "--epochs", "0"], "epochs must be at least 1, not 0"),
        (["ldn_streets", "--dataset", "camvod"], "camvid"),
        (["ldn_streets", "--dataset", "folder"], "classes.txt"),
        (
            ["ldn_streets", "--model", "ldn121-64-3", "--dataset", "folder", "--data-dir", "MINE"],
            "ldn121-64-",
        ),
        (["ldn_streets", "--device", "gpu"], "no device is called 'gpu'"),
        (
            ["regseg_camvid_finetune"],
            "regseg_camvid_finetune starts from a regseg trained on other data, and weights names none: "
            "python -m segkit.train regseg_camvid_finetune --weights runs/RUN/final.pt",
        ),
        (
            ["regseg_camvid_finetune", "--weights", "no.pt"],
            "weights: there is no file no.pt; give the final.pt",
        ),
        (["regseg_streets", "--rand-magnitude", "1.5"], "rand_magnitude must be between 0 and 1, not 1.5"),
        (["ldn_streets", "--schedule", "linear"], "schedule is 'cosine' or 'poly', not 'linear'"),
        (
            [
                "ldn_streets",
                "--resume",
                "--out-dir",
                "nowhere",
                "--dataset",
                "folder",
                "--data-dir",
                "MINE",
                *SMALL,
            ],
            "nothing to resume in nowhere",
        ),
    ],
)
def test_errors_are_one_sentence(arguments, message, capsys, tmp_path, monkeypatch, my_images):
    monkeypatch.chdir(tmp_path)
    arguments = [str(my_images) if word == "MINE" else word for word in arguments]
    monkeypatch.setenv("SEGKIT_DATA", str(tmp_path / "empty"))
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ldn_streets", "--epoch", "3"], "there is no option '--epoch': did you mean --epochs"),
        (["ldn_streets", "--epochs", "three"], "--epochs"),
        (
            ["ldn_streets", "--image-size", "3,4,5"],
            "'3,4,5' is not HEIGHTxWIDTH, such as 352x480, nor one number for a square",
        ),
        (
            ["ldn_streets", "--crop", "3,4,5"],
            "'3,4,5' is not HEIGHTxWIDTH, such as 352x480, nor one number for a square",
        ),
        (["ldn_streets", "--scale", "2"], "'2' is not two numbers, such as 0.5,2"),
        (["ldn_streets", "--short-side", "0.5,2"], "'0.5,2' is not two whole numbers, such as 400,1600"),
        (["ldn_streets", "--short-side", "400"], "'400' is not two whole numbers"),
        (["ldn_streets", "--dataset-options", "train"], "'train' is not KEY=VALUE"),
    ],
)
def test_wrong_options_end_with_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        train.main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_bad_data_is_named_before_training(command, my_images, tmp_path, capsys):
    mask = my_images / "masks" / "train" / "3.png"
    good = mask.read_bytes()
    Image.fromarray(np.full((64, 96), 7, np.uint8)).save(mask)
    try:
        assert command("--epochs", "1") == 2
    finally:
        mask.write_bytes(good)
    error = capsys.readouterr().err
    assert str(mask) in error
    assert "label value 7" in error
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_is_safe(command, capsys):
    assert command("--epochs", "1", "--max-minutes", "0") == 0
    assert command("--epochs", "1", "--max-minutes", "0") == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert command("--epochs", "3", "--resume") == 2
    assert "epochs: here 3, there 1" in capsys.readouterr().err
    assert command("--epochs", "3", "--max-minutes", "0", "--overwrite") == 0


def test_reduced_miou_is_told_where_there_is_one(tmp_path, capsys):
    data = ["--dataset-options", "size=32x64", "train=4", "val=2", "--data-dir", str(tmp_path / "data")]
    options = ["--crop", "32x64", "--short-side", "24,48", "--class-uniform", "0", "--epochs", "1", *SMALL]
    options += ["--batch-size", "4", "--device", "cpu", "--out-dir", str(tmp_path / "run")]
    assert train.main(["regseg_streets", *options, "--warmup-steps", "0", *data]) == 0
    _, last = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "run" / "result.json").read_text())["evaluation"]
    assert f"%, reduced mIoU {100 * result['reduced_miou']:.2f} %, pixel accuracy" in last
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert logged[-1]["reduced_miou"] == result["reduced_miou"]
    checkpoint = ["--checkpoint", str(tmp_path / "run" / "final.pt"), "--device", "cpu"]
    assert evaluate.main([*checkpoint, "--data-dir", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == (
        f"reduced mIoU, without truck, bus, train (RegSeg, Sec. 4.3): {100 * result['reduced_miou']:.2f}"
    )


def test_memory_is_spared_and_changed_on_the_way(command, tmp_path, capsys):
    def losses():
        lines = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["kind"] == "step"]

    assert command("--epochs", "1") == 0
    plain = losses()
    assert command("--epochs", "1", "--recompute", "stem,block,tu", "--max-minutes", "0") == 0
    assert len(losses()) < len(plain)
    assert command("--epochs", "1", "--recompute", "spp", "--chunked-loss", "--resume") == 0
    assert losses() == pytest.approx(plain, rel=1e-5)
    recorded = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert (recorded["recompute"], recorded["chunked_loss"]) == ("stem,block,tu", False)  # as it began
    capsys.readouterr()
    assert command("--epochs", "1", "--recompute", "unit") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No segments labelled 'unit' in this network.")
    assert error.count("\n") == 1


def parsed(*words):
    """The recipe that a command line means."""
    args = train._parser(recipe(words[0])).parse_args(words)
    return recipe(words[0], **train._changes(args, recipe(words[0])))


def test_options_become_fields():
    made = parsed("ldn_streets", "--crop", "96", "--scale", "1,1.5", "--learning-rate", "1e-3")
    assert (made.crop, made.scale, made.learning_rate) == ((96, 96), (1.0, 1.5), 1e-3)
    made = parsed("denseaspp_cityscapes", "--image-size", "256x512", "--crop", "256x512")
    assert (made.image_size, made.crop) == ((256, 512), (256, 512))
    assert parsed("denseaspp_cityscapes", "--image-size", "0").image_size == (0, 0)
    made = parsed("ldn_streets", "--no-exact-batchnorm", "--multi-scale")
    assert (made.exact_batchnorm, made.multi_scale) == (False, True)
    options = ("--dataset-options", "size=64x128", "train=8", "--model-options", "paper_count=True")
    made = parsed("ldn_streets", *options)
    assert made.dataset_options == {"size": (64, 128), "train": 8, "val": 16}
    assert made.model_options == {"spp_grids": (4, 2, 1), "paper_count": True}
    assert parsed("ldn_camvid", "--val-split", "").val_split == ""
    made = parsed("vnet_streets", "--recompute", "unit,stem,td,tu", "--chunked-loss", "--schedule", "cosine")
    assert (made.recompute, made.chunked_loss) == ("unit,stem,td,tu", True)
    assert (made.schedule, made.optimizer) == ("cosine", "adam")
    made = parsed("ldn_streets", "--dataset", "cityscapes", "--dataset-options", "num_classes=20")
    assert made.dataset_options == {"num_classes": 20}
    made = parsed("regseg_streets", "--short-side", "50,100", "--class-uniform-without", "train,bus")
    assert (made.short_side, made.class_uniform_without) == ((50, 100), "train,bus")
    made = parsed("regseg_camvid_finetune", "--weights", "runs/x/final.pt", "--decay-batchnorm")
    assert (made.weights, made.decay_batchnorm) == ("runs/x/final.pt", True)
    for name in RECIPES:
        assert parsed(name) == RECIPES[name]


def test_list_and_help_say_all(capsys):
    assert train.main(["--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == list(RECIPES)
    assert "batch 8, images of 512x1024, crop 512x1024, weights imagenet" in lines["denseaspp_cityscapes"]
    assert "crop 480x480, measured in windows of 480, weights" in lines["fastfcn_pcontext"]
    assert "images of" not in lines["ldn_cityscapes"] and "windows" not in lines["ldn_cityscapes"]
    with pytest.raises(SystemExit):
        train.main(["ldn_camvid", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "passes over the training set; Sec. 6.1 [400]" in text
    assert "chosen: the paper is silent" in text
    assert "--max-minutes" in text


def test_help_names_a_run_folder_with_a_percent_sign(monkeypatch, capsys):
    monkeypatch.setenv("SEGKIT_RUNS", "/runs/50%s")
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    assert "/runs/50%s/RECIPE-HASH" in "".join(capsys.readouterr().out.split())


def test_two_processes_generate_train_and_measure(tmp_path):
    """The command under torchrun, and in one process the same figures from the weights it leaves."""
    out, figures = tmp_path / "run", tmp_path / "figures.json"
    options = ["--dataset-options", "size=32x64", "train=4", "val=2", "--data-dir", str(tmp_path / "data")]
    options += ["--crop", "32x64", "--epochs", "1", "--batch-size", "4", "--limit-train", "4", *SMALL]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [
        *launcher,
        "-m",
        "segkit.train",
        "ldn_streets",
        *options,
        "--limit-val",
        "2",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(train.__file__).parents[1])}
    done = subprocess.run(
        [*command, "--out-dir", str(out)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val mIoU ") == 1  # of the main process alone
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_dir()] == [
        f"streets_32x64_train4_val2_seed0_v{VERSION}"
    ]

    place = ["--checkpoint", str(out / "final.pt"), "--data-dir", str(tmp_path / "data"), "--device", "cpu"]
    assert evaluate.main([*place, "--limit", "2", "--json", str(figures)]) == 0
    result = json.loads((out / "result.json").read_text())["evaluation"]
    alone = json.loads(figures.read_text())
    assert result["images"] == alone["images"] == 2
    for figure in ("miou", "pixel_accuracy"):
        assert result[figure] == pytest.approx(alone[figure], abs=1e-6)
    assert json.loads((out / "settings.json").read_text())["processes"] == 2
