"""``doctor``: which derivatives of this problem can be trusted on this machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from thalweg.errors import ThalwegError
from thalweg.operators import derivatives, surroundings
from thalweg.operators.derivatives import Probe
from thalweg.operators.diagnosis import Check, Diagnosis
from thalweg.problem.problem import Problem


def doctor(problem: Problem, *, seed: int = 0) -> Diagnosis:
    """Examine model, loss and data: derivatives of order one to three, randomness, weighting, kernels, packages.

    Derivatives are compared in float64, whatever the problem's own dtype, at its initial point and along two random
    directions; the cost is that of some 60 gradients over the data. Nothing of the model is changed.

    Args:
        problem: What to examine. Take a part of large data: ``doctor(problem.subset(range(64)))``.
        seed: Of the random directions.

    Returns:
        A `Diagnosis`; ``diagnosis.healthy`` is False where a number would be wrong.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> problem = Problem(model, torch.nn.MSELoss(), (torch.randn(5, 2), torch.randn(5, 1)))
        >>> diagnosis = doctor(problem)
        >>> diagnosis.healthy, diagnosis["second derivative"].status
        (True, 'ok')
    """
    double = problem if problem.dtype == torch.float64 else problem.in_dtype(torch.float64)
    checks = [_attempt("determinism", partial(surroundings.deterministic, problem))]
    probe = Probe.of(double, seed)
    double_works = _attempt("finite", partial(derivatives.finite, probe))
    if double_works.status == "fail" and double_works.value is None:  # the model insists on its own dtype
        double, probe = problem, Probe.of(problem, seed)
        double_works = _attempt("finite", partial(derivatives.finite, probe))
    checks.append(double_works)
    usable = double_works.status == "ok"
    questions: list[tuple[str, bool, Callable[[], Check]]] = [
        ("duplicates", usable, partial(surroundings.duplicates, double)),
        ("batch split", usable, partial(surroundings.split, double)),
        ("first derivative", usable, partial(derivatives.first, probe)),
        ("second derivative", usable, partial(derivatives.second, probe)),
        ("third derivative", usable, partial(derivatives.third, probe)),
        ("symmetry", usable, partial(derivatives.symmetry, probe)),
        ("linearity", usable, partial(derivatives.linearity, probe)),
        ("layouts", usable, partial(derivatives.layouts, probe)),
        ("precision", usable, partial(derivatives.precision, probe, problem)),
        ("attention", usable, partial(surroundings.attention, double)),
        ("norms", True, partial(surroundings.norms, problem)),
        ("torchvision", True, surroundings.torchvision),
    ]
    for name, possible, question in questions:
        missing = Check(name, "skipped", None, None, "The loss cannot be evaluated to a finite number")
        checks.append(_attempt(name, question) if possible else missing)
    dtype = str(double.dtype).removeprefix("torch.")
    return Diagnosis(tuple(checks), f"{problem!r}, derivatives compared in {dtype}, torch {torch.__version__}")


def _attempt(name: str, question: Callable[[], Check]) -> Check:
    """Ask, and make an error an answer."""
    try:
        return question()
    except torch.OutOfMemoryError:
        return Check(name, "skipped", None, None, "Memory ran out", "Examine fewer samples: problem.subset(range(8))")
    except ThalwegError as error:
        return Check(name, "fail", None, None, str(error), "See the message")
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        meaning = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        return Check(name, "fail", None, None, meaning, "Evaluate the model by hand; thalweg run --debug shows more")
