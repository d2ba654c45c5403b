"""The checks of a certificate, each over all batches:

* `float64`: the hoisted model in float64 against the truth, 1e-10. This is the algebra.
* the model's own dtype: its error against the truth, at most twice the original's own, be its sums those of its kernels
  or added term by term. This is the rounding, of the shortest dtype that the graphs name, such as one of autocast's.
* `prepare`: one prepared state scored twice, with other candidates the second time, against two plain calls; either may
  be off by what the check before allows.
* `store`: with a store of items, scores by it against the truth, at most four times off by what the original is; more
  where it keeps floats in a shorter dtype, by eight units in the last place of that.
* `opaque`: only where modules are kept as they are: each of them in float64, rows together against each row alone.
* `capture`: only where the truth is the captured graph: the original, in its own dtype, against that truth.

A hoisted model that raises, or returns another structure or shape, fails the check; the original must not raise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist.arguments import of_kind, whole_number
from rankhoist.errors import VerificationError, VocabularyError
from rankhoist.report.certificate import Certificate, Check
from rankhoist.runtime import HoistedModel, Store
from rankhoist.runtime.catalogue.layout import precision
from rankhoist.runtime.planned import OnePlan
from rankhoist.runtime.versions import versions
from rankhoist.verify.batches import Batch, draw, draw_all, pool
from rankhoist.verify.compare import Comparison, Own, Result, check_numbers, exact, rounded
from rankhoist.verify.measure import FLOAT64_TOLERANCE, Outputs, distance, half_of_the_digits, outputs
from rankhoist.verify.opaque import rows_apart
from rankhoist.verify.original import (
    GRAPH,
    Original,
    Run,
    Truth,
    as_module,
    by_torch,
    choose_truth,
    float64_by_default,
    in_float64,
    run_hoisted,
    run_original,
    shortest_dtype,
    tables_of,
)
from rankhoist.verify.stored import Stocked, run_with_store, stocked
from rankhoist.verify.tables import Tables
from rankhoist.verify.term_by_term import TermByTerm

CANDIDATES, REQUESTS = (1, 2, 7, 100, 1000), (1, 3)
PROBE = 16  # candidates of the call that decides what the truth is, and whether rows depend on each other


def verify(
    hoisted: HoistedModel,
    model: Original,
    inputs: Any = None,
    *,
    trials: int = 1,
    seed: int = 0,
    candidates: Sequence[int] = CANDIDATES,
    requests: Sequence[int] = REQUESTS,
    store: Store | None = None,
    items: Mapping[str, Any] | None = None,
    ids: Any = None,
) -> Certificate:
    """Compare a hoisted model with its original on random batches.

    The truth is the original in float64, called on context rows repeated per candidate. In float64 the hoisted model
    must be equal to 1e-10; in its own dtype its error may be twice the original's own, which is measured with
    sums added term by term, too (`rankhoist.verify.term_by_term` says why).

    Args:
        model: the original: the module, or the method of one, the exported program, or the path of a `.pt2` archive or
            an ONNX file, which ONNX Runtime runs.
        inputs: example inputs to draw rows from, as `hoist` takes them (default: the hoisted model's `example`), or a
            number of trials.
        trials: batches per pair of sizes.
        candidates: numbers of candidates N per call.
        requests: numbers of requests R per call; with several, blocks are ragged and mostly one of them is empty.
        store: scores by it are checked as well: with `items`, those that it holds; otherwise by stores that are made
            like it, of the items that are drawn.
        items: the inputs `{name: [K, ...]}` of items that the store holds, and their `ids` `[K]` (default: its rows).

    Raises:
        VerificationError: there are no inputs to draw from, or the original is on another device, cannot be called, or
            makes nothing but NaN of them.
    """
    of_kind(hoisted, HoistedModel, "the first argument", "the hoisted model, and behind it its original")
    if isinstance(inputs, int) and not isinstance(inputs, bool):
        inputs, trials = None, inputs
    module, rows = as_module(model), pool(hoisted.interface, hoisted.dtype, hoisted.device, inputs)
    _check_device(hoisted, module)
    requests = requests if _has_context(hoisted) else (1,)
    if whole_number(seed, "seed") < 0:
        raise VerificationError(f"seed must be 0 or more, got {seed}")
    specs = list(hoisted.interface.inputs.values())
    batches = draw_all(specs, rows, candidates, requests, trials, seed)
    probe = draw(specs, rows, PROBE, 1, empty=0, seed=seed)
    with torch.no_grad():
        tables = tables_of(module, hoisted)
        truth, checks, row_independent = _run(hoisted, module, tables, batches, probe)
        if store is not None:
            given = [stocked(hoisted, b, store, items, ids, seed + k) for k, b in enumerate(batches)]
            checks.append(_with_store(hoisted, module, tables, truth, given))
    return Certificate(
        level=hoisted.level,
        dtype=_name(hoisted.dtype),
        device=str(hoisted.device),
        truth=truth.name,
        note=truth.note,
        seed=seed,
        trials=trials,
        candidates=tuple(candidates),
        requests=tuple(requests),
        checks=tuple(checks),
        row_independent=row_independent,
        versions=versions(),
        opaque=tuple(hoisted.blueprint.modules),
        conditional=_conditional(hoisted),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


# -- what is drawn


def _check_device(hoisted: HoistedModel, module: nn.Module) -> None:
    there = {t.device.type for t in itertools.chain(module.parameters(), module.buffers())}
    if there and hoisted.device.type not in there:
        raise VerificationError(
            f"the original is on {', '.join(sorted(there))}, and the hoisted model on {hoisted.device}: move one of "
            "them, as in model.to(hoisted.device)"
        )


def _has_context(hoisted: HoistedModel) -> bool:
    """Without a context input nothing says how many requests there are, so there is one."""
    return any(spec.role != "candidate" for spec in hoisted.interface.inputs.values())


# -- what is run


def _run(
    hoisted: HoistedModel, module: nn.Module, tables: Tables, batches: Sequence[Batch], probe: Batch
) -> tuple[Truth, list[Check], bool]:
    """Everything that is computed: the truth, the checks in their order, and whether rows are independent."""
    shortest = shortest_dtype(hoisted)
    double, small = cache(lambda: in_float64(hoisted, tables)), _small(batches)
    extra = [(plan, k) for plan in _unused(hoisted) for k in small]
    called = [*range(len(batches)), *(k for _, k in extra)]  # the batch of every call
    own = _own(module, hoisted, batches)
    with float64_by_default(), tables.looked_up():
        several = [batches[k] for k in small if batches[k].candidates > 1]  # of one, a squeeze() may lose the axis
        truth = choose_truth(module, hoisted, tables, [probe, *several])
        truths = _results(truth.name, truth.run, batches)
        check_numbers(truths, batches)
        row_independent = _row_independent(truth.run, probe)
        doubles = _calls(double, batches, extra)
    calls = _calls(lambda: hoisted, batches, extra)
    compared, true = [batches[k] for k in called], [truths[k] for k in called]
    checks = [exact("float64", Comparison(compared, doubles, true), FLOAT64_TOLERANCE)]
    if shortest != torch.float64:
        own_dtype = _name(shortest if hoisted.dtype == torch.float64 else hoisted.dtype)
        again = replace(own, results=[own.results[k] for k in called])
        checks.append(rounded(own_dtype, Comparison(compared, calls, true), again, shortest))
    checks.append(_prepared(hoisted, batches, calls[: len(batches)], 2 * checks[-1].tolerance))
    if hoisted.blueprint.modules:
        with tables.looked_up():
            checks.append(rows_apart(double(), batches))
    if truth.name == GRAPH:
        checks.append(exact("capture", Comparison(batches, own.results, truths), half_of_the_digits(shortest)))
    return truth, checks, row_independent


def _results(name: str, run: Run, batches: Sequence[Batch]) -> list[Outputs]:
    """The results of what others are measured by, which must not fail."""
    results = []
    for batch in batches:
        try:
            results.append(run(batch))
        except Exception as error:
            raise VerificationError(f"the {name} fails for {batch}: {type(error).__name__}: {error}") from error
    return results


def _calls(
    model: Callable[[], HoistedModel], batches: Sequence[Batch], extra: Sequence[tuple[int, int]]
) -> list[Result]:
    """Every batch by the plan that scores it, and some by plans that no call uses: `tune` may choose them later."""

    def by(plan: int, batch: Batch) -> Outputs:
        return run_hoisted(OnePlan(model(), plan), batch)

    made = [_attempt(lambda b: run_hoisted(model(), b), batch) for batch in batches]
    return [*made, *(_attempt(partial(by, plan), batches[k]) for plan, k in extra)]


def _own(module: nn.Module, hoisted: HoistedModel, batches: Sequence[Batch]) -> Own:
    """The original in its own dtype; term by term, which takes a pass for every term, only where there are few rows."""
    try:
        results = _results("original", lambda b: run_original(module, hoisted.interface, b), batches)
    except VerificationError as error:
        raise VerificationError(f"{error}{_outside(hoisted, batches)}") from error.__cause__
    run = by_torch(module, hoisted)
    # as written: see `Tables.looked_up`
    with torch.compiler.set_stance("force_eager"), TermByTerm():  # type: ignore[no-untyped-call]
        added = {k: _attempt(run, batches[k]) for k in _small(batches)}
    return Own(results, {k: result for k, result in added.items() if isinstance(result, Outputs)})


def _outside(hoisted: HoistedModel, batches: Sequence[Batch]) -> str:
    """In words: the first id of the rows that is outside of its table."""
    for batch in batches:
        try:
            hoisted.check_ids(batch.context, batch.candidate)
        except VocabularyError as error:
            return f"; of the rows that are drawn from, {error}"
    return ""


def _small(batches: Sequence[Batch]) -> list[int]:
    """Numbers of the batches of few candidates."""
    return [k for k, batch in enumerate(batches) if batch.candidates <= PROBE] or [0]


def _conditional(hoisted: HoistedModel) -> tuple[str, ...]:
    """Laws that hold on a condition, where some plan has one."""
    if hoisted.plans.otherwise is None:
        return ()
    return tuple(law.name for law in hoisted.report().laws if law.conditional and law.applied)


def _unused(hoisted: HoistedModel) -> list[int]:
    used = {way.plan for way in hoisted.plans.ranges.ways}
    return [plan for plan in range(len(hoisted.plans.plans)) if plan not in used]


def _attempt(run: Run, batch: Batch) -> Result:
    """A hoisted model's result, or how it failed."""
    try:
        return run(batch)
    except Exception as error:  # a wrong hoist is a failed certificate, whatever it raises
        return f"raises {type(error).__name__}: {error}"


def _row_independent(run: Run, probe: Batch) -> bool:
    """Whether half of the candidates, shuffled, get the scores they had among all."""
    order = torch.randperm(probe.candidates, generator=torch.Generator().manual_seed(0))[: probe.candidates // 2]
    some = Batch(probe.context, {name: x[order.to(x.device)] for name, x in probe.candidate.items()}, (0, len(order)))
    whole = run(probe)
    picked = [x[order] if isinstance(x, Tensor) and x.dim() and len(x) == probe.candidates else x for x in whole.leaves]
    return distance(run(some), Outputs(whole.names, tuple(picked))) <= FLOAT64_TOLERANCE


def _prepared(hoisted: HoistedModel, batches: Sequence[Batch], calls: Sequence[Result], allowed: float) -> Check:
    """Prepare once and score twice, the second time with the candidates in reverse order.

    A request prepared before its candidates are known may have another plan than the call, with roundings of its own.
    """

    def scores(batch: Batch) -> list[Result]:
        try:
            state = hoisted.prepare(batch.context)
            both = (batch, batch.reversed())
            return [outputs(hoisted.score(state, b.candidate, list(b.offsets))) for b in both]
        except Exception as error:  # a wrong hoist is a failed certificate, whatever it raises
            return [f"prepare and score raise {type(error).__name__}: {error}"] * 2

    backwards = [_attempt(lambda b: run_hoisted(hoisted, b), batch.reversed()) for batch in batches]
    comparison = Comparison(
        [b for batch in batches for b in (batch, batch.reversed())],
        [result for batch in batches for result in scores(batch)],
        [result for pair in zip(calls, backwards, strict=True) for result in pair],
    )
    return exact("prepare", comparison, allowed)


def _with_store(
    hoisted: HoistedModel, module: nn.Module, tables: Tables, truth: Truth, given: Sequence[Stocked]
) -> Check:
    """Scores by a store, against the truth."""
    batches = [x.batch for x in given]
    own = _own(module, hoisted, batches)
    with float64_by_default(), tables.looked_up():
        truths = _results(truth.name, truth.run, batches)

    def scored(x: Stocked) -> Result:
        return _attempt(lambda _: run_with_store(hoisted, x), x.batch)

    calls = [scored(x) for x in given]
    comparison = Comparison(batches, calls, truths)
    if shortest_dtype(hoisted) == torch.float64:
        found = exact("store", comparison, FLOAT64_TOLERANCE)
    else:
        found = rounded("store", comparison, own, shortest_dtype(hoisted))
    kept = given[0].store.dtype
    shorter = 0.0 if kept is None else 8 * precision(kept)
    return replace(found, tolerance=max(2 * found.tolerance, shorter))


# -- words


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
