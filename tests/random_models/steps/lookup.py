"""Tables read by ids, and elements chosen by index."""

from __future__ import annotations

import torch
from torch import fx

from random_models.draft import Draft, UnstableError, aten
from random_models.inputs import embedded
from random_models.operands import floats, sequence, whole_numbers
from random_models.rows import VOCABULARY
from random_models.steps.table import Made, Step


def embed(draft: Draft, ids: fx.Node) -> Made:
    """One table per input, or one for all with an offset per field."""
    _check_ids(draft, ids)
    if len(draft.extent(ids)) == 1 and draft.flag():
        other = draft.value(lambda e: e == draft.extent(ids), floating=False)
        ids = draft.call(aten.stack.default, [ids, other], 1)
        _check_ids(draft, ids)
    extent = draft.extent(ids)
    shared = len(extent) == 2 and extent[1] >= 0 and draft.flag()
    if int(draft.sample[ids].max()) >= VOCABULARY:
        raise UnstableError
    return _of_one_table(draft, ids) if shared else _of_own_table(draft, ids)


def _check_ids(draft: Draft, x: fx.Node) -> None:
    if draft.dry[x].dtype != torch.int64:
        raise UnstableError


def _of_one_table(draft: Draft, ids: fx.Node) -> fx.Node:
    fields = draft.extent(ids)[1]
    offsets = draft.weight(torch.arange(fields) * VOCABULARY)
    table = draft.random(VOCABULARY * fields, draft.number(1, 4))
    return draft.call(aten.embedding.default, table, draft.call(aten.add.Tensor, ids, offsets))


def _of_own_table(draft: Draft, ids: fx.Node) -> fx.Node:
    if int(draft.sample[ids].min()) < 0:
        raise UnstableError
    return embedded(draft, ids)


def pairs_by_index(draft: Draft, x: fx.Node) -> Made:
    fields = draft.extent(x)[1]
    i, k = (draft.weight(t.clone()) for t in torch.triu_indices(fields, fields, 1).unbind(0))
    left, right = (draft.call(aten.index_select.default, x, 1, t) for t in (i, k))
    product = draft.call(aten.mul.Tensor, left, right)
    return draft.call(aten.sum.dim_IntList, product, [2]) if draft.flag() else product


def own_row(draft: Draft, x: fx.Node) -> Made:
    """`x[arange(rows), ids]`, read or added to, and `gather`."""
    ids = draft.value(lambda e: len(e) in (1, 2) and e[0] == -1 and min((*e[1:], 1)) > 0, floating=False)
    _check_ids(draft, ids)
    ids = draft.call(aten.remainder.Scalar, ids, draft.places(draft.extent(x)[1]))
    many = len(draft.extent(ids)) == 2
    if many and draft.flag():
        return draft.call(aten.gather.default, x, 1, ids)
    rows = draft.call(aten.arange.default, draft.size(-1), device=torch.device("cpu"), pin_memory=False)
    places = [draft.call(aten.unsqueeze.default, rows, 1) if many else rows, ids]
    if draft.flag():
        return draft.call(aten.index_put.default, x, places, draft.random(1), True)
    return draft.call(aten.index.Tensor, x, places)


def read(draft: Draft, x: fx.Node) -> Made:
    """Tokens at places that ids choose, the same for all columns or others for each; then a layer of what is read."""
    _, length, width = draft.extent(x)
    length = draft.places(length)
    ids = draft.value(lambda e: len(e) in (1, 2) and e[0] == -1 and min((*e[1:], 1)) > 0, floating=False)
    _check_ids(draft, ids)
    ids = draft.call(aten.remainder.Scalar, ids, length)
    if len(draft.extent(ids)) == 1:
        ids = draft.call(aten.unsqueeze.default, ids, 1)
    ids = draft.call(aten.unsqueeze.default, ids, 2)
    if draft.flag():
        ids = draft.call(aten.remainder.Scalar, draft.call(aten.add.Tensor, ids, columns(draft, width)), length)
    else:
        ids = draft.call(aten.expand.default, ids, [-1, -1, draft.number(1, width)])
    made = draft.call(aten.gather.default, x, 1, ids)
    yield made
    if draft.flag():
        wide = draft.number(1, 4)
        weight = draft.random(wide, draft.extent(made)[2], scale=0.6)
        made = draft.call(aten.linear.default, made, weight, draft.random(wide))
        yield draft.call(aten.tanh.default, made) if draft.flag() else made


def read_in_each(draft: Draft, x: fx.Node) -> Made:
    """Of every token columns that ids choose, others for each token; of the first tokens, where there are fewer ids."""
    _, length, width = draft.extent(x)
    ids = draft.value(lambda e: len(e) == 2 and e[0] == -1 and 0 < e[1] <= length, floating=False)
    _check_ids(draft, ids)
    ids = draft.call(aten.unsqueeze.default, ids, 2)
    ids = draft.call(aten.add.Tensor, ids, columns(draft, draft.number(1, 4)))
    return draft.call(aten.gather.default, x, 2, draft.call(aten.remainder.Scalar, ids, draft.places(width)))


def expert(draft: Draft, x: fx.Node) -> Made:
    """A row by a matrix that ids choose among few; then a layer."""
    ids = draft.value(lambda e: len(e) == 1, floating=False)
    _check_ids(draft, ids)
    count, width = draft.number(1, 5), draft.extent(x)[1]
    matrices = draft.random(count, 256 // width + 1, width, scale=0.3)
    ids = draft.call(aten.remainder.Scalar, ids, count)
    chosen = draft.call(aten.index.Tensor, matrices, [ids])
    made = draft.call(aten.bmm.default, chosen, draft.call(aten.unsqueeze.default, x, 2))
    made = draft.call(aten.squeeze.dim, made, 2)
    if draft.flag():
        made = draft.call(aten.tanh.default, made)
    yield made
    yield draft.call(aten.linear.default, made, draft.random(3, 256 // width + 1, scale=0.1))


def columns(draft: Draft, width: int) -> fx.Node:
    return draft.weight(torch.arange(width))


STEPS = [
    Step(1, expert, floats(lambda e: len(e) == 2 and e[0] == -1 and e[1] > 0)),
    Step(2, read, floats(sequence)),
    Step(1, read_in_each, floats(sequence)),
    Step(1, embed, whole_numbers(lambda e: len(e) < 3)),
    Step(1, pairs_by_index, floats(lambda e: len(e) == 3 and e[0] == -1 and e[1] > 1)),
    Step(1, own_row, floats(lambda e: len(e) == 2 and e[0] == -1 and e[1] > 0)),
]
