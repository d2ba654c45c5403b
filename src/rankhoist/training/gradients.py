"""Are the gradients of a grouped model those of its original on rows? The answer is a certificate, in float64.

Its checks, each over all batches: `scores`, `gradients` (of every parameter), and `buffers` (what batch norms
remember). Copies are compared: neither model is changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankhoist.arguments import of_kind
from rankhoist.capture.wrappers import unwrapped
from rankhoist.errors import VerificationError
from rankhoist.report.certificate import Certificate, Check
from rankhoist.runtime.versions import versions
from rankhoist.training.model import GroupedModel
from rankhoist.training.steps import CANCELS, random_sum
from rankhoist.verify.batches import Batch, arguments, draw_all, pool, whole_rows
from rankhoist.verify.compare import Comparison, Result, check_numbers, exact
from rankhoist.verify.measure import Outputs, difference, outputs, scale_of
from rankhoist.verify.original import float64_by_default

TOLERANCE = 1e-9


def verify_gradients(
    grouped: GroupedModel, model: nn.Module | None = None, inputs: Any = None, *, trials: int = 1, seed: int = 0,
    candidates: Sequence[int] = (20, 100), requests: Sequence[int] = (3, 8),
) -> Certificate:  # fmt: skip
    """Compare scores, gradients and buffers with those of the original on whole rows, in float64, to 1e-9.

    Errors are relative to the largest gradient of the same parameter, or to 1e-4 of the largest of all where that is
    more: what cancels out is zero to rounding. The loss is a random sum of all that the model
    returns. Every module is in the mode that it is in, but dropout, which is off: two draws are never equal.

    Args:
        model: the original (default: the one that was grouped).
        inputs: example inputs to draw rows from, as `grouped` takes them (default: those that it was given).
        trials: batches per pair of sizes.
        candidates: numbers of candidates N per batch.
        requests: numbers of requests R per batch; blocks are ragged and mostly one of them is empty. With one alone, a
            batch norm divides a context column that is the same in all rows by nothing, and gradients are noise.

    Raises:
        VerificationError: there are no inputs to draw from, or no sizes, or the original cannot be called or
            makes nothing but NaN.
    """
    of_kind(grouped, GroupedModel, "the first argument", "what rankhoist.grouped returns")
    ours, theirs = copy.deepcopy(grouped), copy.deepcopy(unwrapped(grouped.original if model is None else model))
    ours.train(grouped.training), theirs.train(grouped.training)
    for own, other in zip(grouped.original.modules(), ours.original.modules(), strict=True):
        other.training = own.training
    for own, other in zip(ours.original.modules(), theirs.modules(), strict=True):
        other.training = own.training
    off = sorted({*_without_dropout(ours.original), *_without_dropout(theirs)})
    if off:
        ours.forget()
    with float64_by_default():
        ours.double(), theirs.double()
        interface = ours.interface
        specs, rows = list(interface.inputs.values()), pool(interface, torch.float64, _device(theirs), inputs)
        drawn = draw_all(specs, rows, candidates, requests, trials, seed)
        batches = [batch.cast(interface, torch.float64) for batch in drawn]
        expected = [_step(theirs, b, _on_rows(theirs, ours, b), seed, "the original") for b in batches]
        check_numbers([x.scores for x in expected], batches)
        actual = [_attempt(ours, b, seed) for b in batches]
    return Certificate(
        level=ours.plan.asked.name.lower(), dtype="float64", device=str(_device(theirs)), truth="model in float64",
        note=f"dropout is off in {', '.join(off)}" if off else "", seed=seed, trials=trials,
        candidates=tuple(candidates), requests=tuple(requests), checks=tuple(_checks(batches, actual, expected)),
        row_independent=not grouped.training, versions=versions(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


class _Step(NamedTuple):
    """What one forward and backward leaves."""

    scores: Outputs
    gradients: Outputs
    buffers: Outputs


def _without_dropout(model: nn.Module) -> list[str]:
    """Switch dropout off; the paths of the modules that drew."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p:
            found.append(name)
            module.eval()
        elif module.training and getattr(module, "dropout", 0.0) and isinstance(module.dropout, float):
            found.append(name)
            module.dropout = 0.0
    return found


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def _on_rows(model: nn.Module, ours: GroupedModel, batch: Batch) -> Any:
    args, kwargs = arguments(ours.interface, whole_rows(ours.interface, batch))
    try:
        return model(*args, **kwargs)
    except Exception as error:
        raise VerificationError(f"the original fails for {batch}: {type(error).__name__}: {error}") from error


def _attempt(ours: GroupedModel, batch: Batch, seed: int) -> _Step | str:
    """A step of the grouped model, or how it failed."""
    try:
        made = ours._of_sides(ours.graphs, batch.context, batch.candidate, list(batch.offsets))
        return _step(ours.original, batch, made, seed, "the grouped model")
    except Exception as error:  # a wrong gradient is a failed certificate, whatever it raises
        return f"raises {type(error).__name__}: {error}"


def _step(model: nn.Module, batch: Batch, result: Any, seed: int, who: str) -> _Step:
    """Backward of a random sum of the result."""
    total = random_sum(result, seed + batch.candidates)
    if total is None:
        raise VerificationError(f"{who} returns nothing that has a gradient")
    model.zero_grad(set_to_none=True)
    total.backward()
    gradients = {n: _dense(p) for n, p in model.named_parameters()}
    kinds = {f"{n} is sparse": p.grad is not None and p.grad.is_sparse for n, p in model.named_parameters()}
    buffers = {n: b.detach().cpu().clone() for n, b in model.named_buffers()}
    return _Step(outputs(result), _named(gradients | kinds), _named(buffers))


def _dense(parameter: nn.Parameter) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return (gradient.to_dense() if gradient.is_sparse else gradient).detach().cpu().clone()


def _named(tensors: dict[str, Any]) -> Outputs:
    return Outputs(tuple(tensors), tuple(tensors.values()))


def _checks(batches: Sequence[Batch], actual: Sequence[_Step | str], expected: Sequence[_Step]) -> Iterable[Check]:
    def compared(name: str) -> Comparison:
        ours: list[Result] = [x if isinstance(x, str) else getattr(x, name) for x in actual]
        return Comparison(batches, ours, [getattr(x, name) for x in expected])

    yield exact("scores", compared("scores"), TOLERANCE)
    yield _gradients(compared("gradients"))
    if expected and expected[0].buffers.names:
        yield exact("buffers", compared("buffers"), TOLERANCE)


def _gradients(comparison: Comparison) -> Check:
    """Every parameter by the scale of its own gradient; nearly nothing beside all others is zero to rounding."""
    problem = comparison.problem()
    if problem:
        return Check("gradients", math.inf, TOLERANCE, problem=problem)
    both = {n: x for n, x in comparison.by_output().items() if isinstance(x[1][0], Tensor)}
    lowest = CANCELS * max(scale_of(e) for _, e in both.values())
    found = {n: difference(a, e, max(scale_of(e) if _any(e) else 0.0, lowest)) for n, (a, e) in both.items()}
    name = max(found, key=lambda n: found[n].error)
    return Check("gradients", found[name].error, TOLERANCE, worst=comparison.element(name, found[name]))


def _any(gradients: Sequence[Tensor]) -> bool:
    return any(bool(g.any()) for g in gradients)
