"""What the commands read from a command line."""

import argparse

import pytest

from segkit import console


def test_an_error_is_one_line(capsys):
    parser = console.Parser(prog="x")
    parser.add_argument("--size", type=console.size)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--size", "wide"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: argument --size: 'wide' is not HEIGHTxWIDTH")
    assert error.count("\n") == 1


def test_a_percent_sign_survives_the_help(capsys):
    parser = console.Parser(prog="x")
    parser.add_argument("--out", help=f"default: {console.literal('/tmp/100%s')}")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "default: /tmp/100%s" in capsys.readouterr().out


def test_counts():
    assert [console.count(text) for text in ("1", "08", "300")] == [1, 8, 300]
    for wrong in ("", "0", "00", "-1", "+2", "1.5", "1e3", " 2", "x", "²", "٣"):
        with pytest.raises(argparse.ArgumentTypeError) as error:
            console.count(wrong)
        assert str(error.value) == f"{wrong!r} is not a whole number of at least 1"


def test_sizes():
    assert console.size("128x256") == (128, 256)
    assert console.size("128X256") == (128, 256)
    assert console.size("448") == (448, 448)
    for wrong in ("", "x", "3x", "x3", "3,4,5", "1.5x2", "-3x4", "٣x٤"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not HEIGHTxWIDTH, such as 352x480"):
            console.size(wrong)


def test_values_of_options():
    assert console.key_value("size=128x256") == ("size", (128, 256))
    assert console.key_value("num_classes=20") == ("num_classes", 20)
    assert console.key_value("spp_grids=(4, 2)") == ("spp_grids", (4, 2))
    assert console.key_value("paper_count=True") == ("paper_count", True)
    assert console.key_value("name=some text=x") == ("name", "some text=x")
    for wrong in ("size", "=3", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is not KEY=VALUE, such as size=128x256"):
            console.key_value(wrong)
