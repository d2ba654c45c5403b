"""A target: device and dtype, and what is known of them. A plan is made for one; another has another best plan.

A new target is a file here: a table of its own, the functions that read it, and a `Target` of them (see `cpu.py`).
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from rankhoist.compiler.graph.node import Node
from rankhoist.compiler.lower.limits import Limits
from rankhoist.compiler.lower.over import overwritten

ALIKE = 1.03  # predictions closer than this are equal: then fewer multiply-adds win


class Measured(Protocol):
    """What was measured on a machine; all else in it is for the functions of its target alone."""

    @property
    def machine(self) -> str:
        """On what, in a few words."""


@dataclass(frozen=True)
class Target:
    """What plans are made for, and what is known of it.

    Attributes:
        name: such as `cpu-float32`.
        device, dtype: where the stages run, and what their tensors are of.
        limits: from which size on one larger operator gains nothing over several.
        profile: what was measured there; the functions below read it.
        start: (profile) -> seconds of a call before its first operator.
        kind: (node) -> all of a node that its seconds depend on.
        seconds: (node, profile, candidates, requests, over=) -> seconds of one operator in one call, written over its
            operand's memory or not; arrays of candidates and requests give an array.
        over: (nodes, outputs) -> which results are written over an operand.
        doubt: how many times as fast as the original a plan must be by prediction to score a call that was not timed.
        tried: other limits, of which the profile does not tell what they gain: only `tune` tries plans by them.
    """

    name: str
    device: str
    dtype: torch.dtype
    limits: Limits
    profile: Measured
    start: Callable[[Any], float]
    kind: Callable[[Node], Hashable]
    seconds: Callable[..., Any]
    over: Callable[[Sequence[Node], Sequence[Any]], Mapping[int, int]] = overwritten
    doubt: float = 1.0
    tried: tuple[Limits, ...] = ()

    def predicted(
        self, nodes: Sequence[Node], outputs: Sequence[Any], candidates: Any, requests: Any,
        known: dict[Any, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Seconds of one call, request and candidate stage; arrays of candidates and requests give an array.

        `nodes` is all that `outputs` need; `known` remembers the seconds of nodes that are alike, for these calls.
        """
        known = {} if known is None else known
        alike = collections.Counter(self.timed(nodes, outputs, candidates, requests, known))
        calls = np.broadcast_shapes(np.shape(candidates), np.shape(requests))
        each = (count * known[key] for key, count in alike.items())
        return sum(each, start=np.full(calls, self.start(self.profile)))

    def timed(
        self, nodes: Sequence[Node], outputs: Sequence[Any], candidates: Any, requests: Any, known: dict[Any, Any]
    ) -> list[tuple[Hashable, bool]]:
        """Of each node, what its seconds in these calls are `known` by, once this has returned."""
        over = self.over(nodes, outputs)
        alike = [(self.kind(n), n.index in over) for n in nodes]
        for key, n in zip(alike, nodes, strict=True):
            if key not in known:
                known[key] = self.seconds(n, self.profile, candidates, requests, over=key[1])
        return alike
