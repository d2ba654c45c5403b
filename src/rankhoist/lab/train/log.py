"""An impression log in Parquet as rows to train on: which column is what, and its requests in three parts.

A column is a feature by its type, and is what the trained model takes, unchanged:

| type | kind |
|---|---|
| whole numbers | ids from 0 on, a row of a table each |
| lists of whole numbers | ids, 0 for none; in the context of any length |
| other numbers, lists of these of one length, and what is named so | dense |

Nothing is numbered anew or scaled, so the same files are scored by the model as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist.capture import Jagged
from rankhoist.lab.data import DataError, Feature, LabelledRows
from rankhoist.lab.data.features import Kind, Side
from rankhoist.lab.data.labelled import TRAIN_SHARE, VALIDATION_SHARE
from rankhoist.training import ImpressionLog, parquet

LARGEST = 50_000_000  # rows of a table
Where = Callable[[Any], str]  # a row's number -> its file and row


@dataclass(frozen=True)
class Columns:
    """Which column of a log is what.

    request    tells which request a row belongs to, by values of any type
    label      0 or 1
    context    names or globs of the request's columns
    candidate  the same of the candidate's, but for those of the context (none given: all); what is neither is left out
    dense      the same of whole numbers that are quantities and no ids
    tables     column -> the name of its table; those of one name share it, and a column's own is named like it
    """

    request: str
    label: str
    context: Sequence[str]
    candidate: Sequence[str] = ()
    dense: Sequence[str] = ()
    tables: Mapping[str, str] = field(default_factory=dict)


def load_log(given: Sequence[str], columns: Columns, latest: int | None = None) -> LabelledRows:
    """The rows of Parquet files, folders or globs, request by request in the order in which these first come.

    The last tenth of the rows is there to test, the tenth before to validate, cut between requests.

    Args:
        latest: about how many rows to keep: those of the last requests.

    Raises:
        RankhoistError: a file or a column is not there; a column holds what is no number, no id, no label, or differs
            within a request where it is context; or there are too few requests. Messages name file, row and column.
    """
    from rankhoist.score.columns import is_list  # of the extra `score`
    from rankhoist.score.files import Files, found

    files = Files(found(given))
    for name in (columns.request, columns.label):
        files.type_of(name, "which tells requests apart" if name == columns.request else "which is the label")
    sides = _sides(files.names, columns)
    dense = set(_chosen(list(sides), columns.dense, "dense")) if columns.dense else set()
    types = {name: files.type_of(name, "as in the first file") for name in sides}
    kinds = {name: _kind(name, of.value_type if is_list(of) else of, is_list(of), dense) for name, of in types.items()}
    bags = [name for name, kind in kinds.items() if kind == "ids"]
    read = parquet.read(files.paths, [*sides, columns.label], bags, [columns.request])
    made = [_feature(name, sides[name], kinds[name], read[name], files.where) for name in sides]
    values = {feature.name: value for feature, value in made}
    values[columns.label] = _labels(columns.label, read[columns.label], files.where)
    schema = _with_tables([feature for feature, _ in made], columns.tables)
    context = [name for name, side in sides.items() if side == "context"]
    log = ImpressionLog(values, request=_rows(read[columns.request]), context=context, targets=[columns.label])
    return _rows_of(log, f"{columns.label} in {_title(files.paths)}", schema, columns.label, latest)


def _sides(names: Sequence[str], columns: Columns) -> dict[str, Side]:
    """Context columns, then candidate columns."""
    features = [name for name in names if name not in (columns.request, columns.label)]
    context = _chosen(features, columns.context, "context")
    candidate = _chosen(features, columns.candidate or ["*"], "candidate")
    candidate = [name for name in candidate if name not in context]
    if not context or not candidate:
        missing = "candidate" if context else "context"
        raise DataError(f"no column is the {missing}'s; the columns are {', '.join(features)}")
    sides: dict[str, Side] = dict.fromkeys(context, "context")
    return {**sides, **dict.fromkeys(candidate, "candidate")}


def _chosen(names: Sequence[str], patterns: Sequence[str], what: str) -> list[str]:
    """The columns that names or globs choose, in the order of the file."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DataError(f"{what} {pattern!r}: no such column among {', '.join(names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _kind(name: str, of: Any, listed: bool, dense: set[str]) -> Kind:
    """What a column is by the type of its numbers."""
    from pyarrow import types

    if "." in name or hasattr(nn.ModuleDict(), name):
        raise DataError(f"column {name!r}: a module of PyTorch has no part of that name; rename the column")
    if types.is_integer(of) and name not in dense:
        return "ids" if listed else "id"
    if types.is_integer(of) or types.is_floating(of) or types.is_boolean(of):
        return "dense"
    raise DataError(
        f"column {name!r} holds {of}: number its values from 1 on, 0 for none, or leave it out by naming the candidate "
        "columns that are features"
    )


def _rows(column: parquet.Column) -> Tensor:
    assert isinstance(column, Tensor), "only ids are read as bags"
    return column


def _feature(name: str, side: Side, kind: Kind, column: parquet.Column, where: Where) -> tuple[Feature, Tensor]:
    if isinstance(column, Jagged):
        owner = torch.arange(len(column)).repeat_interleave(column.lengths)
        size = _size(name, column.values[0], lambda place: where(int(owner[place])))
        varying = len(column.lengths.unique()) > 1
        if varying and side == "candidate":
            low, high = int(column.lengths.min()), int(column.lengths.max())
            raise DataError(
                f"candidate column {name!r} holds lists of {low} to {high} ids: pad them with 0 to one length, or "
                "name it context if it is the request's"
            )
        return Feature(name, side, kind, size, name, varying), _padded(column, 2 if varying else 1)
    if kind == "dense":
        value = column.float()
        if not bool(value.isfinite().all()):
            row = int((~value.isfinite()).nonzero()[0, 0])
            raise DataError(f"{where(row)}, column {name!r}: {column[row].tolist()}, expected a finite number; fill it")
        return Feature(name, side, kind, 1 if value.dim() == 1 else value.shape[1]), value
    return Feature(name, side, kind, _size(name, column, where), name), column.long()


def _size(name: str, ids: Tensor, where: Where) -> int:
    """Rows of a table for these ids."""
    size = int(ids.max()) + 1 if len(ids) else 1
    if size > LARGEST:
        raise DataError(
            f"{where(int(ids.argmax()))}, column {name!r}: {size - 1} as an id, and a table has a row for each number "
            f"below: number the ids from 1 on, or name the column dense if it is a quantity"
        )
    if len(ids) and int(ids.min()) < 0:
        least = int(ids.argmin())
        raise DataError(
            f"{where(least)}, column {name!r}: {int(ids[least])} as an id, expected 0 or more; number the ids from 1 "
            "on, or name the column dense if it is a quantity"
        )
    return size


def _padded(bags: Jagged, least: int) -> Tensor:
    """`[rows, longest]`, with 0 behind."""
    width = max(int(bags.lengths.max()) if len(bags) else 0, least)
    made = torch.zeros(len(bags), width, dtype=torch.int64)
    made[torch.arange(width) < bags.lengths[:, None]] = bags.values[0].long()
    return made


def _labels(name: str, column: parquet.Column, where: Where) -> Tensor:
    labels = _rows(column).float()
    if labels.dim() != 1:
        raise DataError(f"label {name!r} holds lists, expected 0 or 1")
    odd = ((labels != 0) & (labels != 1)).nonzero()
    if len(odd):
        row = int(odd[0, 0])
        raise DataError(f"{where(row)}, label {name!r}: {labels[row].tolist()}, expected 0 or 1")
    if len(labels.unique()) < 2:
        raise DataError(f"label {name!r} is the same in all {len(labels):,} rows: nothing can be learnt from it")
    return labels


def _with_tables(schema: Iterable[Feature], tables: Mapping[str, str]) -> tuple[Feature, ...]:
    """With the tables asked for, as large as the largest id in any column of theirs wants."""
    named = [replace(f, vocabulary=tables.get(f.name, f.vocabulary)) for f in schema]
    known = {f.name for f in named if f.kind != "dense"}
    if unknown := [name for name in tables if name not in known]:
        raise DataError(f"table of {unknown[0]!r}: no such column of ids among {', '.join(sorted(known))}")
    sizes: dict[str, int] = {}
    for f in named:
        sizes[f.vocabulary] = max(f.size, sizes.get(f.vocabulary, 0))
    return tuple(f if f.kind == "dense" else replace(f, size=sizes[f.vocabulary]) for f in named)


def _rows_of(
    log: ImpressionLog, source: str, schema: tuple[Feature, ...], label: str, latest: int | None
) -> LabelledRows:
    """All rows with their context, or those of the last requests."""
    offsets = log.offsets
    first = 0 if latest is None else int((offsets < offsets[-1] - latest).sum())
    start, counts = int(offsets[first]), offsets.diff()
    rows = {name: _rows(x).repeat_interleave(counts, 0) for name, x in log.context.items()}
    rows |= {name: _rows(x) for name, x in log.candidate.items()}
    kept = {name: x[start:] for name, x in rows.items()}
    labels, offsets = kept.pop(label), offsets[first:] - start
    train, validation, test = split_by_request(offsets)
    return LabelledRows(
        source=source, schema=schema, features=kept, labels=labels, request_offsets=offsets, train=train,
        validation=validation, test=test,
    )  # fmt: skip


def split_by_request(offsets: Tensor) -> tuple[slice, slice, slice]:
    """`[R + 1]` boundaries of requests -> train, validation and test rows; the rows of a request stay together."""
    rows = int(offsets[-1])
    wanted = torch.tensor([TRAIN_SHARE, TRAIN_SHARE + VALIDATION_SHARE], dtype=torch.float64) * rows
    cuts = [0, *offsets[torch.searchsorted(offsets.double(), wanted)].tolist(), rows]
    parts = [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
    if any(part.start == part.stop for part in parts):
        raise DataError(f"{len(offsets) - 1} requests of {rows} rows are too few to split: give ten or more")
    return parts[0], parts[1], parts[2]


def _title(paths: Sequence[Any]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0].name}{more}"
