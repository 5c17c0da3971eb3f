"""What the commands of segkit share: errors of one line; counts, sizes and KEY=VALUE on the command line."""

import argparse
import ast
import re
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with exit status 2."""
        self.exit(2, f"error: {message} (--help lists the options)\n")


def command(name: str, page: str | None, **options: Any) -> Parser:
    """The parser of ``python -m segkit.NAME``.

    Args:
        name: the module, without ``segkit.``.
        page: its docstring: the first paragraph opens the help, the rest closes it as it stands.
        **options: further keywords of ``argparse.ArgumentParser``.
    """
    description, _, rest = (page or "").partition("\n\n")
    return Parser(
        prog=f"python -m segkit.{name}",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def literal(text: object) -> str:
    """The text as argparse prints it unchanged in a help line, where ``%`` would begin a format."""
    return str(text).replace("%", "%%")


def count(text: str) -> int:
    """Reads a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """Reads HEIGHTxWIDTH, or one number for a square, as ``(height, width)`` in pixels.

    Raises:
        argparse.ArgumentTypeError: if it is neither.
    """
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text.lower(), re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HEIGHTxWIDTH, such as 352x480, nor one number for a square"
        )
    return int(found[1]), int(found[2] or found[1])


def key_value(text: str) -> tuple[str, Any]:
    """Reads KEY=VALUE: a size such as 128x256, a Python literal, or else plain text, which needs no quotes.

    Raises:
        argparse.ArgumentTypeError: if a key or the equals sign is missing.
    """
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as size=128x256")
    if "x" in value.lower():
        try:
            return key, size(value)
        except argparse.ArgumentTypeError:
            pass  # a word with an x in it
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
