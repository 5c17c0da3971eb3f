"""The kinds of exercise: a number, a choice, a function.

Each has `hint(answer)`, which returns None for a right answer and otherwise one sentence. Mistakes that many
make are listed with the exercise, so that the sentence can name the mistake instead of the difference.
"""

import copy
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

UNANSWERED = "not answered yet"


class Exercise(Protocol):
    """Anything that can judge an answer."""

    def hint(self, answer: object) -> str | None:
        """None for a right answer, otherwise one sentence."""


def _is_blank(answer: object) -> bool:
    return answer is None or answer is ...


@dataclass(frozen=True)
class Value:
    """One number is right, within a tolerance.

    Args:
        expected: the right number.
        traps: wrong numbers that come from a known mistake, each with its hint.
        tolerance: relative tolerance of the answer, and of the traps.
    """

    expected: float
    traps: Mapping[float, str] = field(default_factory=dict)
    tolerance: float = 1e-3

    def hint(self, answer: object) -> str | None:
        """See the module."""
        if _is_blank(answer):
            return UNANSWERED
        try:
            number = float(answer)
        except (TypeError, ValueError, RuntimeError):
            return f"a single number is asked for, this is {_shown(answer)}"
        for value, sentence in ((self.expected, None), *self.traps.items()):
            if math.isclose(number, value, rel_tol=self.tolerance):
                return sentence
        if not math.isfinite(number):
            return f"{number} is no number to go on with: is something divided by zero?"
        return f"{number:g} is too {'small' if number < self.expected else 'large'}"


@dataclass(frozen=True)
class Choice:
    """One of several words is right.

    Args:
        expected: the right word.
        others: the wrong ones, each with its hint.
    """

    expected: str
    others: Mapping[str, str]

    def hint(self, answer: object) -> str | None:
        """See the module."""
        if _is_blank(answer):
            return UNANSWERED
        word = str(answer).strip().lower()
        if word == self.expected:
            return None
        choices = ", ".join(sorted([self.expected, *self.others]))
        return self.others.get(word, f"{word!r} is none of the choices: {choices}")


@dataclass(frozen=True)
class Function:
    """A function that must do what a reference does: on each case the same output, gradients and buffers.

    Args:
        reference: the right function; its argument names appear in hints.
        cases: each makes a fresh tuple of arguments, always the same. Tensors that require a gradient, and
            the parameters of modules, are compared by gradient too; modules' buffers by value.
        mistakes: known wrong functions, each with its hint. An answer that behaves like one of them on every
            case, its errors included, gets that hint.
        rtol: relative tolerance of every comparison.
        atol: absolute tolerance of every comparison.
    """

    reference: Callable
    cases: Sequence[Callable[[], tuple]]
    mistakes: Mapping[Callable, str] = field(default_factory=dict)
    rtol: float = 1e-4
    atol: float = 1e-6

    def hint(self, answer: object) -> str | None:
        """See the module."""
        if _is_blank(answer):
            return UNANSWERED
        if not callable(answer):
            return f"a function is asked for, this is {_shown(answer)}"
        answers = [self._run(answer, case) for case in self.cases]
        if all(outcome.blank for outcome in answers):
            return UNANSWERED
        if not (first := self._first_difference(answers, self.reference)):
            return None
        for mistake, sentence in self.mistakes.items():
            if not self._first_difference(answers, mistake):
                return sentence
        return first

    def _first_difference(self, answers: list["_Outcome"], other: Callable) -> str | None:
        for outcome, case in zip(answers, self.cases, strict=True):
            if difference := _difference(outcome, self._run(other, case), self.rtol, self.atol):
                return f"with {self._described(case)}: {difference}"
        return None

    def _names(self) -> list[str]:
        return list(inspect.signature(self.reference).parameters)

    def _described(self, case: Callable[[], tuple]) -> str:
        """Such as "x (2, 8, 4, 4), epoch 3"."""
        pairs = zip(self._names(), case(), strict=False)
        words = [
            f"{name} {tuple(value.shape) if isinstance(value, Tensor) else value}"
            for name, value in pairs
            if not isinstance(value, nn.Module)
        ]
        return ", ".join(words)

    def _run(self, function: Callable, case: Callable[[], tuple]) -> "_Outcome":
        """Runs a function on its own copy of the arguments; global random numbers are left as they were."""
        arguments = copy.deepcopy(case())
        leaves: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        for name, value in zip(self._names(), arguments, strict=False):
            if isinstance(value, Tensor) and value.requires_grad:
                leaves[name] = value
            elif isinstance(value, nn.Module):
                leaves |= {f"{name}.{part}": parameter for part, parameter in value.named_parameters()}
                buffers |= {f"{name}.{part}": buffer for part, buffer in value.named_buffers()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                output = function(*arguments)
            except Exception as error:  # a learner's function may raise anything
                return _Outcome(error=error)
        if _is_blank(output):
            return _Outcome(blank=True)
        try:
            tensors = _tensors(output)
        except (TypeError, ValueError):
            return _Outcome(error=TypeError(f"it returns {_shown(output)}"))
        return _Outcome(
            tensors, _gradients(tensors, leaves), {name: b.clone() for name, b in buffers.items()}
        )


@dataclass(frozen=True)
class _Outcome:
    """What one call came to."""

    output: list[Tensor] = field(default_factory=list)
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    error: Exception | None = None
    blank: bool = False


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return "a function" if callable(value) else f"{type(value).__name__} {value!r}"[:80]


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in _tensors(part)]
    if isinstance(output, str):
        raise TypeError("text is no output")
    return [output if isinstance(output, Tensor) else torch.as_tensor(output, dtype=torch.float64)]


def _gradients(outputs: list[Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """Gradients of a weighted sum of the outputs; the weights differ, so that no two errors cancel."""
    total = sum(
        (output * torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view(output.shape)).sum()
        for output in outputs
        if output.requires_grad
    )
    if not isinstance(total, Tensor) or not leaves:
        return dict.fromkeys(leaves)
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def _difference(got: _Outcome, wanted: _Outcome, rtol: float, atol: float) -> str | None:
    """The first difference, in the order error, shape, value, gradient, buffers."""
    if got.error and wanted.error:
        return None if _alike(got.error, wanted.error) else f"raises {type(got.error).__name__}"
    if got.error:
        return f"{type(got.error).__name__}: {' '.join(str(got.error).split())[:200]}"
    if wanted.error or got.blank != wanted.blank:
        return "nothing is returned" if got.blank else "an error is expected"
    shapes = [[tuple(tensor.shape) for tensor in outcome.output] for outcome in (got, wanted)]
    if shapes[0] != shapes[1]:
        return f"the shape is {_listed(shapes[0])}, expected {_listed(shapes[1])}"

    def differ(a: Tensor, b: Tensor) -> bool:
        return not torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True)

    for mine, theirs in zip(got.output, wanted.output, strict=True):
        if differ(mine, theirs):
            at = int((mine.double() - theirs.double()).abs().nan_to_num(nan=math.inf).argmax())
            place = f" at {[int(i) for i in torch.unravel_index(torch.tensor(at), mine.shape)]}" * (
                mine.dim() > 0
            )
            value, right = mine.flatten()[at].item(), theirs.flatten()[at].item()
            return f"the shape is right, but the value{place} is {value:.4g}, expected {right:.4g}"
    for name, gradient in wanted.gradients.items():
        mine = got.gradients.get(name)
        if gradient is not None and (mine is None or differ(mine, gradient)):
            fault = "is missing: the output does not depend on it" if mine is None else "differs"
            return f"the values are right, but the gradient of {name} {fault}"
    for name, buffer in wanted.buffers.items():
        if differ(got.buffers[name], buffer):
            return f"values and gradients are right, but the buffer {name} differs after the call"
    return None


def _alike(a: Exception, b: Exception) -> bool:
    """Same type and same numbers in the message: two operands may stand in the other order."""
    numbers = [sorted(re.findall(r"\d+", str(error))) for error in (a, b)]
    return type(a) is type(b) and numbers[0] == numbers[1]


def _listed(shapes: list[tuple]) -> str:
    return " and ".join(map(str, shapes))
