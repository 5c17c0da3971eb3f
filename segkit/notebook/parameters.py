"""One line after the parameters cell that refuses misspelt, mistyped or impossible values.

papermill accepts any `-p name value`: an unknown name is injected and never read, and the run ends well with
the defaults. `check_parameters` compares what was injected with what the parameters cell declares. A kernel
knows neither its notebook's path nor what papermill added, but its own input history (`In`) holds both cells.

    check_parameters(epochs=range(1, 1001), crop=multiple_of(32), dataset=one_of("streets", "camvid"))
"""

import ast
import difflib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ParameterError",
    "Rule",
    "at_least",
    "between",
    "check_parameters",
    "existing_folder_or_empty",
    "multiple_of",
    "one_of",
    "positive",
]

# What a parameter must be, by the type of its declared value, and what to write when it is not.
_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a tuple",
    dict: "a dictionary",
}


class ParameterError(ValueError):
    """A notebook parameter that cannot be used; IPython and papermill show its sentence, not a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Rule:
    """What a value must fulfil.

    Args:
        text: completes the sentence "epochs must be …".
        holds: tells whether a value fulfils it; it must not raise.
        near: optionally, a value to propose instead of a refused one.
    """

    text: str
    holds: Callable[[object], bool]
    near: Callable[[object], str | None] = lambda value: None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def multiple_of(step: int) -> Rule:
    """A positive whole number divisible by `step`."""
    return Rule(
        f"a positive multiple of {step}",
        lambda value: _is_number(value) and value > 0 and value % step == 0,
    )


def one_of(*choices: object) -> Rule:
    """One of the given values; a refused text is answered with the nearest one."""
    texts = [str(choice) for choice in choices]

    def near(value: object) -> str | None:
        found = difflib.get_close_matches(str(value), texts, n=1)
        return repr(choices[texts.index(found[0])]) if found else None

    def holds(value: object) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in choices)

    return Rule("one of " + ", ".join(map(repr, choices)), holds, near)


def between(low: float, high: float) -> Rule:
    """A number from `low` to `high`, both included."""
    return Rule(
        f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high
    )


def at_least(low: float) -> Rule:
    """A number not under `low`."""
    return Rule(f"a number not under {low:g}", lambda value: _is_number(value) and value >= low)


positive = Rule("a number above 0", lambda value: _is_number(value) and value > 0)

existing_folder_or_empty = Rule(
    "an existing folder, or '' for the default one",
    lambda value: value == "" or (isinstance(value, str) and Path(value).expanduser().is_dir()),
)


def declared(source: str) -> dict[str, object] | None:
    """The values of a cell made only of `name = literal` lines; None for any other cell."""
    try:
        statements = ast.parse(source).body
        pairs = [
            (line.targets, ast.literal_eval(line.value)) for line in statements if type(line) is ast.Assign
        ]
    except (SyntaxError, ValueError):
        return None
    names = [target.id for targets, _ in pairs for target in targets if type(target) is ast.Name]
    if not pairs or len(names) != len(statements) or any(value is ... for _, value in pairs):
        return None
    return dict(zip(names, (value for _, value in pairs), strict=True))


def injected(source: str) -> list[str]:
    """The names that a cell written by papermill assigns."""
    return [
        line.targets[0].id
        for line in ast.parse(source).body
        if type(line) is ast.Assign and type(line.targets[0]) is ast.Name
    ]


def _as_rule(rule: Rule | range) -> Rule:
    if not isinstance(rule, range):
        return rule
    steps = f" in steps of {rule.step}" if rule.step != 1 else ""
    return Rule(
        f"a whole number from {rule[0]} to {rule[-1]}{steps}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value in rule,
    )


def _wrong_kind(name: str, value: object, default: object) -> str | None:
    """Why `value` may not replace `default`: an int passes for a float, only a bool for a bool."""
    kind = type(default)
    if default is None or type(value) is kind or (kind is float and type(value) is int):
        return None
    sentence = f"{name} must be {_KINDS.get(kind, kind.__name__)} like {default!r}, got {value!r}"
    if kind is bool and str(value).lower() in ("true", "false"):
        word = str(value).capitalize()
        return f"{sentence}: papermill reads {value} as text, write -p {name} {word}"
    if kind is str:
        return f"{sentence}: pass text that looks like a number or a word such as None with -r instead of -p"
    return sentence


def _broken_rule(name: str, value: object, rule: Rule) -> str | None:
    if rule.holds(value):
        return None
    near = rule.near(value)
    return f"{name} must be {rule.text}, got {value!r}" + (f"; did you mean {near}?" if near else "")


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    tail = f"did you mean {near[0]}?" if near else f"the parameters are {', '.join(known)}"
    return f"unknown parameter {name}; {tail}"


def find_problem(
    history: Sequence[str], values: Mapping[str, object], rules: Mapping[str, Rule]
) -> str | None:
    """The first thing that is wrong, as a sentence; None when all is well.

    Args:
        history: the source of every cell run so far, oldest first. Empty where no history is kept (nbval):
            then nothing can have been injected either, and only the rules are looked at.
        values: what each name stands for now.
        rules: by parameter name.
    """
    cells = [
        (at, declared(source)) for at, source in enumerate(history) if not source.startswith("# Parameters")
    ]
    # An exercise's answer can look like a parameters cell too, so one that has all ruled names is wanted.
    cells = [(at, cell) for at, cell in cells if cell and set(rules) <= set(cell)]
    if cells:
        at, defaults = cells[-1]
        # Only a cell that papermill put after the declaration overrides it.
        added = [source for source in history[at + 1 :] if source.startswith("# Parameters")]
        for name in injected(added[-1]) if added else ():
            if name not in defaults:
                return _unknown(name, list(defaults))
        for name, default in defaults.items():
            if problem := _wrong_kind(name, values.get(name), default):
                return problem
    for name, rule in rules.items():
        if name not in values:
            return f"{name} has a rule but no value: run the parameters cell first"
        if problem := _broken_rule(name, values[name], rule):
            return problem
    return None


def check_parameters(**rules: Rule | range) -> None:
    """Check the notebook's parameters; to be called in the cell after the one tagged `parameters`.

    Args:
        rules: by parameter name, a `range` of whole numbers or one of this module's rules. A parameter
            without a rule is checked for its type.

    Raises:
        ParameterError: a name that the parameters cell does not declare, a value of another type than the
            declared one, or a value that breaks its rule.
    """
    scope = sys._getframe(1).f_globals  # the notebook's own names, IPython's history `In` among them
    problem = find_problem(scope.get("In", []), scope, {name: _as_rule(rule) for name, rule in rules.items()})
    if problem:
        raise ParameterError(problem)
