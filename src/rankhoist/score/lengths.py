"""Requests of one length together: files have histories of any length, a call has one.

Inputs with an axis that varies are read as bags, a list per row. The requests of a block that have the same lengths are
a block of their own, with these inputs as one tensor `[R, T, ...]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rankhoist.capture import Interface, Jagged
from rankhoist.errors import ScoringError
from rankhoist.score.columns import Rows
from rankhoist.score.layouts import Block


def by_length(block: Block, interface: Interface) -> Iterator[tuple[Block, Tensor]]:
    """Blocks whose requests have the same lengths, each with the places of its candidates in the whole one, `[N]`.

    Raises:
        ScoringError: lists of a row that have to be equally long are not; says in which file and row.
    """
    counts = torch.from_numpy(block.offsets).diff()
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    lengths = _lengths(block, {s.name: v.length for s in interface.inputs.values() for v in s.varying}, owner)
    kept = torch.nonzero(counts).flatten()  # a request without candidates has no scores
    found, group = torch.stack([own[kept] for own in lengths]).unique(dim=1, return_inverse=True)
    for i in range(found.shape[1]):
        requests = kept[group == i]
        mine = torch.zeros(len(counts), dtype=torch.bool).index_fill_(0, requests, True)
        yield _part(block, requests, torch.nonzero(mine[owner]).flatten(), counts)


def _lengths(block: Block, varying: Mapping[str, str], owner: Tensor) -> list[Tensor]:
    """Of every request `[R]`, by length, those that inputs of the same length agree on for every candidate."""
    found: dict[str, tuple[str, Tensor]] = {}
    for name, rows in (block.context | block.candidate).items():
        if name not in varying:
            continue
        assert isinstance(rows, Jagged), "lists are read as bags"
        first, own = found.setdefault(varying[name], (name, rows.lengths))
        given = rows.lengths[owner] if name in block.context else rows.lengths
        odd = torch.nonzero(given != own[owner]).flatten()
        if len(odd):
            row = int(odd[0])
            said = f"a list of {int(given[row])}, where {first!r} has {int(own[owner[row]])}"
            raise ScoringError(f"{block.where(row)}, column {name!r}: {said}; both have to be of one length")
    return [own for _, own in found.values()]


def _part(block: Block, requests: Tensor, rows: Tensor, counts: Tensor) -> tuple[Block, Tensor]:
    """Some requests, with all of their candidates, which are the `rows`."""
    offsets = torch.cat([counts.new_zeros(1), counts[requests].cumsum(0)])
    own = replace(
        block,
        context={name: _dense(x[requests]) for name, x in block.context.items()},
        candidate={name: _dense(x[rows]) for name, x in block.candidate.items()},
        offsets=offsets.numpy(),
        kept={},
        where=lambda i: block.where(int(rows[i])),
    )
    return own, rows


def _dense(rows: Rows) -> Tensor:
    """Bags of one size as one tensor."""
    if isinstance(rows, Tensor):
        return rows
    (values,) = rows.values
    return values.view(len(rows), int(rows.lengths[0]), *values.shape[1:])
