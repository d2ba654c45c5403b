"""Jagged inputs: bags of values. Law: what is made of the bags of one side is that side's, and a bag is a row again.

Sums of lengths, and cuts at these sums, are followed as what they mean: which bags lie where. So the bags of several
inputs under each other, as containers of features hold them, are each input's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from rankhoist.compiler.algebra import bags, stacked
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law

# -- lookups


def embedding_bag(call: Call) -> Value:
    """Bags of ids, a row of a table each: every input's at its own rate."""
    ids, offsets, weights = (call.value(n) for n in ("indices", "offsets", "per_sample_weights"))
    table = call.form("weight")
    if not isinstance(ids, bags.Ragged) or not isinstance(offsets, bags.Bounds):
        raise Elsewhere("the ids are not in bags of an input")
    columns = [ids] if weights is None else [ids, weights]
    if table.rate or table.has_rows:
        raise Decline(f"the table is no weight, but {table.axes}")
    keys = _cut_by(call, columns, offsets, bool(call.value("include_last_offset")))
    made = []
    for i, key in enumerate(keys):
        own = [replace(column, parts=column.parts[i : i + 1]) for column in columns]
        given = dict(zip(("indices", "per_sample_weights"), own, strict=False), include_last_offset=False)
        made.append(call.again(weight=table, offsets=bags.Bounds(key.lengths, True, False, offsets.dtype), **given)[0])
    return made[0] if len(made) == 1 else stacked.under_each_other(call.builder, made, 0)


def padded_bags(call: Call) -> Value:
    """The bags of one input as rows of one length, filled up with a number."""
    values, offsets = call.value("values"), call.value("offsets")
    if not isinstance(values, bags.Ragged) or len(offsets) != 1 or not isinstance(offsets[0], bags.Bounds):
        raise Elsewhere("the values are not in bags of an input")
    keys = _cut_by(call, [values], offsets[0], True)
    if len(keys) > 1:
        raise Decline("pads the bags of several inputs together")
    return call.rowwise(offsets=[replace(offsets[0], lengths=keys[0].lengths)])


def _cut_by(call: Call, columns: Sequence[Value], offsets: bags.Bounds, last: bool) -> list[bags.Key]:
    """The keys whose bags offsets cut columns of values into; `last` says whether they have where the last bag ends."""
    if not offsets.first or offsets.last != last:
        raise Decline("bags are given by offsets that are not those of their lengths")
    keys = call.bags(offsets.lengths)
    for column in columns:
        if not isinstance(column, bags.Ragged) or [p.lengths for p in column.parts] != [key.node for key in keys]:
            raise Decline("values are cut into bags by other lengths than their own")
    return keys


# -- sums of lengths


def running_sum(call: Call) -> Value:
    """Sums of whole numbers so far, along the rows: where bags of these lengths end."""
    lengths = call.form()
    if lengths.dtype.is_floating_point or lengths.place(call.value("dim") or 0) != len(lengths.layout) - 1:
        raise Elsewhere(f"{lengths.axes} are no lengths with rows last")
    return _sums(call)


def behind_zero(call: Call) -> Value:
    """The same behind a 0."""
    return replace(_sums(call), first=True)


def before_each(call: Call) -> Value:
    """The same behind a 0, without the last."""
    return replace(_sums(call), first=True, last=False)


def _sums(call: Call) -> bags.Bounds:
    call.bags(call.form())
    return bags.Bounds(call.form(), False, True, call.out.dtype)


def total(call: Call) -> Value:
    """What lengths add up to over all rows."""
    lengths, axes = call.form("self"), call.value("dim")
    last = len(lengths.layout) - 1
    chosen = [0] if axes is None or axes == [] else [lengths.place(a) for a in axes]
    if lengths.dtype.is_floating_point or chosen != [last] or ROW not in lengths.layout[last]:
        raise Elsewhere(f"{lengths.axes} are no lengths with rows last")
    if call.value("keepdim"):
        raise Decline("keeps the axis of rows")
    sums = [key.total for key in call.bags(lengths)]
    if None in sums:
        raise Decline("adds up what are no lengths of an input")
    return bags.Totals(lengths, (sum(sums),) if last == 0 else tuple(sums), call.out.dtype)


# -- where bags lie


def joined(call: Call) -> Value:
    """Values under values; or a 0 before sums so far."""
    given = call.value("tensors")
    if all(isinstance(v, bags.Ragged) for v in given):
        if call.value("dim") != 0:
            raise Elsewhere("puts columns side by side")
        return bags.Ragged(tuple(p for v in given for p in v.parts), call.out.dtype)
    if len(given) != 2 or not isinstance(given[1], bags.Bounds) or given[1].first:
        raise Elsewhere("joins no values of bags")
    zero, bounds = call.constant(given[0]), given[1]
    axis = call.value("dim")
    if axis not in (-1, len(bounds.lengths.layout) - 1) or zero is None or zero.shape[-1:] != (1,) or bool(zero.any()):
        raise Decline("puts something other than 0 before sums of lengths")
    return replace(bounds, first=True)


def padded(call: Call) -> bags.Bounds:
    """A 0 before sums so far."""
    bounds = _bounds(call)
    if bounds.first or call.value("pad") != [1, 0] or call.value("value"):
        raise Decline("puts something other than 0 before sums of lengths")
    return replace(bounds, first=True)


def difference(call: Call) -> Value:
    """Sums so far without the own length, or between neighbours: the lengths."""
    left, right = call.value("self"), call.value("other")
    if not isinstance(left, bags.Bounds) or call.value("alpha") != 1:
        raise Elsewhere("subtracts no lengths")
    if left.first or not left.last:
        raise Decline("subtracts from sums of lengths with a 0 before them")
    if isinstance(right, Form) and _same(call, left.lengths, right):
        return replace(left, first=True, last=False)
    starts = isinstance(right, bags.Bounds) and (right.first, right.last) == (True, False)
    if starts and _same(call, left.lengths, right.lengths):
        return call.cast(left.lengths, call.out.dtype)
    raise Decline("subtracts something other than lengths of the same bags")


def _same(call: Call, lengths: Form, other: Form) -> bool:
    return [key.node for key in call.bags(lengths)] == [key.node for key in call.bags(other)]


def cut(call: Call) -> Value:
    """Sums so far without the first or the last of them; values of some of the inputs."""
    value, start, end = call.value("self"), call.value("start"), call.value("end")
    if isinstance(value, bags.Ragged):
        return _between(value, call, 0 if start is None else start, stacked.END if end is None else end)
    bounds = _bounds(call)
    axis, (count, _) = call.value("dim"), bounds.lengths.extents[-1]
    size = count * call.rows + int(bounds.first) + int(bounds.last) - 1
    if axis not in (-1, len(bounds.lengths.layout) - 1) or call.value("step") != 1:
        raise Decline("cuts sums of lengths otherwise than at their ends")
    whole = end is None or (isinstance(end, int) and end >= stacked.END) or end == size
    short = end == -1 or end == size - 1
    if start not in (None, 0, 1) or not (whole or short) or (start and not bounds.first) or (short and not bounds.last):
        raise Decline(f"cuts sums of lengths from {start} to {end}")
    return replace(bounds, first=bounds.first and not start, last=bounds.last and not short)


def parts(call: Call) -> list[bags.Ragged]:
    """Values cut where those of an input end."""
    value, sizes = call.value("self"), call.value("split_sizes", "split_size")
    if not isinstance(value, bags.Ragged):
        raise Elsewhere("cuts no values of bags")
    if call.value("dim") != 0 or not isinstance(sizes, list):
        raise Elsewhere("cuts columns apart")
    ends = list(itertools.accumulate(sizes))
    return [_between(value, call, e - s, e) for s, e in zip(sizes, ends, strict=True)]


def _between(value: bags.Ragged, call: Call, start: Value, end: Value) -> bags.Ragged:
    places = [0, *itertools.accumulate(p.total for p in value.parts)]
    whole = isinstance(end, int) and end >= stacked.END
    if call.value("dim") != 0 or start not in places or not (whole or end in places):
        raise Decline("cuts values where those of no input end")
    first, last = places.index(start), len(value.parts) if whole else len(places) - 1 - places[::-1].index(end)
    if first >= last:
        raise Decline("takes the values of no input")
    return replace(value, parts=value.parts[first:last])


def _bounds(call: Call) -> bags.Bounds:
    value = call.value("self")
    if not isinstance(value, bags.Bounds):
        raise Elsewhere("no sums of lengths")
    return value


# -- by key


def select(call: Call) -> Value:
    """Those of one key."""
    made = _of_keys(call)
    return made[call.number("index") % len(made)]


def unbind(call: Call) -> list[Value]:
    """Those of every key."""
    return _of_keys(call)


def _of_keys(call: Call) -> list[Value]:
    value = call.value("self")
    if call.value("dim") != 0:
        raise Elsewhere("takes no key apart")
    if not isinstance(value, bags.Bounds | bags.Totals) or len(value.lengths.layout) != 2:
        raise Elsewhere("takes no key apart")
    keys = call.bags(value.lengths)
    if isinstance(value, bags.Totals):
        return [bags.Totals(k.lengths, (one,), value.dtype) for k, one in zip(keys, value.sums, strict=True)]
    return [replace(value, lengths=key.lengths) for key in keys]


def same(call: Call) -> Value:
    """Copies, and other dtypes of whole numbers, are still where bags lie."""
    value = call.value("self", "input")
    if not isinstance(value, bags.Bounds | bags.Totals) or call.out.dtype.is_floating_point:
        raise Elsewhere("no sums of lengths")
    return replace(value, dtype=call.out.dtype)


LAWS = law("bags of values", Level.LOOKUP, {
    "embedding_bag _embedding_bag_forward_only _embedding_bag": embedding_bag,
    "_jagged_to_padded_dense_forward": padded_bags,
    "fbgemm::jagged_to_padded_dense": padded_bags,
    "fbgemm::jagged_to_padded_dense_forward": padded_bags,
    "cumsum": running_sum,
    "fbgemm::asynchronous_inclusive_cumsum": running_sum,
    "fbgemm::asynchronous_complete_cumsum": behind_zero,
    "fbgemm::asynchronous_exclusive_cumsum": before_each,
    "sum": total,
    "cat concat concatenate": joined,
    "constant_pad_nd pad": padded,
    "sub.Tensor": difference,
    "slice": cut,
    "split_with_sizes unsafe_split_with_sizes split.sizes": parts,
    "select": select,
    "unbind": unbind,
    "_to_copy to clone alias detach contiguous lift_fresh_copy": same,
})  # fmt: skip
