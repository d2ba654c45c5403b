"""Operators in training mode, where rows meet in statistics and every row has a mask of its own.

Law 1: a batch norm takes the mean and the variance of all rows. A context block has one row per request, which stands
for as many rows as the request has candidates: its statistics are weighted by these counts. Channels do not meet, so
the batch norm of blocks of channels is the blocks of the batch norm, running statistics included.
Law 2, where it is asked for: dropout draws one mask per request for what is the request's. That is another regulariser
than one mask per row; by default every row draws its own, of whatever block.
"""

from __future__ import annotations

from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law


def batch_norm(call: Call) -> Value:
    """By counts where channels are the request's, over all rows where they are not."""
    x = call.tidy(call.form("input"))
    if not call.value("training") or ROW in x.layout[1] or len(x.layout[1]) != 1:
        raise Decline(f"normalises axis 1 of {x.axes}, which is not channels alone")
    (channels,) = x.layout[1]
    if all(block.rate.per_candidate for block in x.blocks.values()):
        raise Elsewhere(f"all channels of {x.axes} are known per candidate")
    if any(len(cuts) > 1 for d, cuts in enumerate(x.dims) if d != channels):
        raise Decline(f"an axis of {x.axes} that is not the channels holds both context and candidate")
    affine = [call.form(name) for name in ("weight", "bias") if call.value(name) is not None]
    if len(affine) == 1 or not x.arithmetic or any(f.dtype != x.dtype or not f.of_weights for f in affine):
        raise Decline(f"normalises {x.dtype} by weights of another dtype, by inputs, or without a bias")
    return call.normed_by_counts(x, affine)


def dropout(call: Call) -> Value:
    """One mask per request for what is the request's, one per row for all else."""
    return call.dropped(call.tidy(call.form("input")), call.value("p"))


LAWS = [
    *law("batch statistics by counts", Level.REQUEST, {
        "_native_batch_norm_legit_functional.default _native_batch_norm_legit.no_stats": batch_norm,
    }, blocks=Level.LINEAR),
    *law("dropout per request", Level.REQUEST, {"native_dropout.default": dropout}, blocks=Level.LINEAR),
]  # fmt: skip
