"""`python -m segkit.data`: what it prints, and one line with exit code 2 when something is wrong."""

import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from segkit.data.__main__ import main


def test_camvid_from_a_pack(tmp_path, make_camvid, capsys):
    make_camvid(tmp_path / "set", ".webp", "")
    with tarfile.open(tmp_path / "pack.tar", "w") as tar:
        tar.add(tmp_path / "set", arcname="pack")
    command = ["camvid", "--from", str(tmp_path / "pack.tar"), "--data-dir", str(tmp_path / "data")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"camvid: {tmp_path / 'data' / 'camvid'}" in printed
    assert re.search(r"train +3 images of 6x8, all read and right", printed)
    # 48 pixels hold each of the 12 values four times.
    for name in ("Sky", "Bicyclist", r"\(ignored\)"):
        assert re.search(rf"^{name} +8\.333 +8\.333 +8\.333$", printed, re.MULTILINE)
    assert main(command) == 0, "a second time finds it there"
    assert main(["camvid", "--data-dir", str(tmp_path / "data")]) == 0
    assert "headers checked" in capsys.readouterr().out


def test_streets_are_generated_where_it_says(tmp_path, capsys):
    options = ["--size", "64x128", "--train", "2", "--val", "1", "--data-dir", str(tmp_path)]
    assert main(["streets", *options]) == 0
    printed = capsys.readouterr().out
    folder = next(path for path in tmp_path.iterdir() if path.name.startswith("streets"))
    assert f"streets: {folder}" in printed
    assert re.search(r"train +2 images of 64x128", printed)
    shares = re.findall(r"^[a-z( )]+?\)? +(\d+\.\d+) +(\d+\.\d+)$", printed, re.MULTILINE)
    assert len(shares) == 20
    for column in zip(*shares, strict=True):
        assert sum(map(float, column)) == pytest.approx(100, abs=0.02)
    assert float(re.search(r"^road +([\d.]+)", printed, re.MULTILINE)[1]) > 5


def test_one_split_of_streets_can_be_made_alone(tmp_path, capsys):
    assert (
        main(["streets", "--size", "64x128", "--train", "0", "--val", "1", "--data-dir", str(tmp_path)]) == 0
    )
    printed = capsys.readouterr().out
    assert re.search(r"val +1 images of 64x128", printed) and "train " not in printed.split("\n")[1]


def test_other_sets_are_checked_where_they_lie(tmp_path, make_cityscapes, make_folder, capsys):
    make_cityscapes(tmp_path / "cityscapes")
    assert main(["cityscapes", "--data-dir", str(tmp_path), "--verify"]) == 0
    assert "3 images of 8x16, all read and right" in capsys.readouterr().out
    make_folder(tmp_path / "mine")
    assert main(["folder", "--data-dir", str(tmp_path / "mine")]) == 0
    assert "2 images, headers checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["camvid"], "run `python -m segkit.data camvid --from PATH`"),
        (["camvid", "--from", "nowhere.tar"], "nowhere.tar does not exist"),
        (["cityscapes", "--verify"], "cityscapes-dataset.com"),
        (["folder"], "classes.txt"),
        (["city"], "unknown data set 'city'.*'cityscapes'"),
        (["pascal_context", "--convert"], "Pascal Context is not there: no trainval_merged.json"),
        (["folder", "--from", "pack.tar"], "--from is for camvid alone"),
        (["camvid", "--size", "8x8"], "no option 'size'"),
        (["streets", "--size", "0x128"], "0"),
        (["streets", "--train", "-3"], "-3"),
        (["streets", "--val", "0", "--train", "0"], "train=0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, arguments, message):
    assert main([*arguments, "--data-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert re.match(f"error: .*{message}", printed.err)
    assert list(tmp_path.iterdir()) == []


def test_help_names_a_data_root_with_a_percent_sign(monkeypatch, capsys):
    monkeypatch.setenv("SEGKIT_DATA", "/data/50%s")
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "/data/50%s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["streets", "--size", "128x"],
        ["streets", "--size", "axb"],
        ["streets", "--train", "many"],
        ["streets", "--nope"],
    ],
)
def test_a_command_line_that_cannot_be_read_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1


def test_a_label_out_of_range_is_named(tmp_path, make_folder, save, capsys):
    root = make_folder(tmp_path)
    save(root / "masks" / "val" / "c.png", np.full((5, 7), 9, np.uint8))
    assert main(["folder", "--data-dir", str(root), "--verify"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.match(r"error: .*c\.png: label value 9 ", printed.err)


def test_the_module_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "segkit.data", "camvid", "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: CamVid is not there") and "Traceback" not in done.stderr
