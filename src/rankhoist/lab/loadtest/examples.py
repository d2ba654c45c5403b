"""Requests to send: drawn at random from what the server says its model takes, or read from a file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rankhoist_client.columns import DATATYPES
from rankhoist_client.messages import Array
from rankhoist_client.v2 import TEXT

from rankhoist.errors import CommandError

LARGEST = 20  # values in a row of a jagged feature
LONGEST = 100  # an axis that varies, where its bounds let it be shorter
MOST = 100  # integers without a known bound are probably no ids


@dataclass(frozen=True)
class Example:
    """One request: context `{name: [1, ...]}` and candidates `{name: [N, ...]}`."""

    context: dict[str, Array]
    candidates: dict[str, Array]


def drawn(metadata: Mapping[str, Any], candidates: int, count: int, seed: int) -> list[Example]:
    """Random valid requests: ids inside their vocabulary, numbers from the standard normal distribution.

    Args:
        metadata: a model's, as the server gives it.
        candidates: N of each request.
        count: how many.

    Raises:
        CommandError: candidates are named by ids of a catalogue, which nobody can draw.
    """
    named = [about["name"] for about in metadata["inputs"] if about.get("parameters", {}).get("names")]
    if named:
        raise CommandError(f"{named[0]!r} names items of a catalogue: give requests that do so (--requests FILE)")
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        lengths = _lengths(metadata, random)
        sides = [_side(metadata, *own, lengths, random) for own in (("context", 1), ("candidate", candidates))]
        made.append(Example(*sides))
    return made


def _lengths(metadata: Mapping[str, Any], random: np.random.Generator) -> dict[str, int]:
    """Of the axes that vary in one request, by what axes of the same length share."""
    axes = [axis for about in metadata["inputs"] for axis in about.get("parameters", {}).get("varying", ())]
    bounds = {axis["length"]: (axis["minimum"], axis["maximum"]) for axis in axes}
    return {
        length: int(random.integers(low, max(low, LONGEST if high is None else min(high, LONGEST)), endpoint=True))
        for length, (low, high) in bounds.items()
    }


def _side(
    metadata: Mapping[str, Any], side: str, rows: int, lengths: Mapping[str, int], random: np.random.Generator
) -> dict[str, Array]:
    own = {about["name"]: about for about in metadata["inputs"] if about.get("parameters", {}).get("side") == side}
    cuts = {name: about["parameters"].get("lengths") for name, about in own.items()}
    sizes = {cut: random.integers(0, LARGEST, rows, np.int64, endpoint=True) for cut in cuts.values() if cut}
    made = {
        name: _values(about, sizes[cuts[name]].sum() if cuts[name] else rows, lengths, random)
        for name, about in own.items()
        if name not in sizes
    }
    return made | sizes


def _values(about: Mapping[str, Any], rows: int, lengths: Mapping[str, int], random: np.random.Generator) -> Array:
    """`maximum` is the largest id: of all values, or of each value of a row, None where it is no id."""
    free = {axis["axis"]: lengths[axis["length"]] for axis in about["parameters"].get("varying", ())}
    shape = rows, *(free.get(axis, size) for axis, size in enumerate(about["shape"][1:], 1))
    dtype = np.dtype(DATATYPES[about["datatype"]])
    most = about["parameters"].get("maximum")
    if dtype.kind == "b":
        return random.random(shape) < 0.5
    if dtype.kind in "iu":
        return random.integers(0, MOST if most is None else most, shape, dtype, endpoint=True)
    normal = random.standard_normal(shape)
    if most is None:
        return normal.astype(dtype)
    bounds = np.array(most, float).reshape(shape[1:] if isinstance(most, list) else ())
    ids = np.floor(random.random(shape) * (np.nan_to_num(bounds) + 1))
    return np.where(np.isnan(bounds), normal, ids).astype(dtype)


def read(path: Path, metadata: Mapping[str, Any]) -> list[Example]:
    """Requests of a JSON file: one `{"context": {...}, "candidates": {...}}`, or a list of them.

    Raises:
        CommandError: it is no such file, or does not fit the model.
    """
    try:
        data = json.loads(path.read_bytes())
        return [_typed(one, metadata) for one in (data if isinstance(data, list) else [data])]
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(
            f'{path} does not hold requests {{"context": ..., "candidates": ...}} of the model: {error!r}'
        ) from error


def _typed(request: Any, metadata: Mapping[str, Any]) -> Example:
    """JSON values as arrays of the dtypes and shapes that the model takes."""
    known = {about["name"]: about for about in metadata["inputs"]}
    candidates = request["candidates"]
    if isinstance(candidates, list):
        candidates = {name: [row[name] for row in candidates] for name in candidates[0]}
    return Example(
        _arrays(known, request["context"], "context"),
        _arrays(known, candidates, "candidate"),
    )


def _arrays(known: Mapping[str, Any], features: Mapping[str, Any], side: str) -> dict[str, Array]:
    """Those of one side; a jagged feature has a list per row, of which the context's may stand alone."""
    made: dict[str, Array] = {}
    for name, value in features.items():
        values = known.get(f"{name}.values", {})
        if "lengths" not in values.get("parameters", {}):
            made[name] = _array(known[name], value)
            continue
        nested = bool(value) and np.ndim(value[0]) >= len(values["shape"])
        rows = value if side == "candidate" or nested else [value]
        made[f"{name}.values"] = _array(values, list(itertools.chain.from_iterable(rows)))
        made[values["parameters"]["lengths"]] = np.array([len(row) for row in rows], np.int64)
    return made


def _array(about: Mapping[str, Any], value: Any) -> Array:
    kind = np.str_ if about["datatype"] == TEXT else DATATYPES[about["datatype"]]
    array, row = np.asarray(value, kind), about["shape"][1:]
    if -1 not in row:
        return array.reshape(-1, *row)
    return array if array.ndim > len(row) else array[None]  # as it is given: nothing else says how long it is
