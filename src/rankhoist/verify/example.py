"""Whether a hoisted model takes the example that it was hoisted with: what cannot be called is told when it is made."""

from __future__ import annotations

import warnings
from typing import Any

from rankhoist.capture.refusal import refused
from rankhoist.errors import HoistingWarning, InputError, VerificationError
from rankhoist.mistakes import told
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.offsets import even
from rankhoist.verify.original import Original, as_module

REQUESTS = 8  # that rows of the example are scored as


def check_example(hoisted: HoistedModel, model: Original) -> None:
    """That the model takes its example; where it has none, or one without values, there is nothing to check.

    On a GPU nothing is run, for an id that is computed there and outside of its table ends the process's use of it.

    Raises:
        VocabularyError: an id of the example is outside of its table; says of which input, in which row.
        InputError: the model itself fails on the example.
    """
    rows = hoisted.example
    if not rows or hoisted.device.type == "meta":
        return
    inputs = hoisted.interface.inputs.values()
    sides: dict[str, dict[str, Any]] = {"context": {}, "candidate": {}}
    for spec in inputs:
        for side, _, columns in spec.parts:
            own = rows[spec.name]
            sides[side][spec.name] = own if columns is None else own[:, list(columns)]
    count = len(next(iter(rows.values())))
    requests = min(count, REQUESTS) if sides["context"] else 1
    try:
        if hoisted.device.type == "cpu":
            state = hoisted.prepare({n: x[:requests] for n, x in sides["context"].items()}, candidates=count)
            hoisted.score(state, sides["candidate"], even(count, requests))
        hoisted.check_ids(sides["context"], sides["candidate"])
    except InputError as error:
        raise type(error)(f"the model does not take its example: {error}") from error
    except Exception as error:
        if (refusal := _own(hoisted, model)) is not None:
            raise refusal from error
        warnings.warn(
            f"{told('scoring the example', error)}. The original scores it: verify before it is used", HoistingWarning,
            stacklevel=3,
        )  # fmt: skip


def _own(hoisted: HoistedModel, model: Original) -> InputError | None:
    """What the original says of the example, if it fails on that, too."""
    args, kwargs = hoisted.interface.call(hoisted.example)
    try:
        module = as_module(model)
    except VerificationError:
        return None
    return refused(module, args, kwargs, hoisted.example)
