"""States that grow: one more event of a history, at the cost of one position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rankhoist.arguments import mapping_of
from rankhoist.capture.varying import Varying, with_lengths
from rankhoist.compiler.growing import Growing, RefusedError, Varies, make_growing, uniform_weights
from rankhoist.compiler.plan import Way
from rankhoist.errors import AppendError, InputError
from rankhoist.runtime.catalogue import CatalogueScoring, Store
from rankhoist.runtime.halves import Halves
from rankhoist.runtime.ids import Feed
from rankhoist.runtime.inputs import one_length
from rankhoist.runtime.rows import in_own_width
from rankhoist.runtime.scoring import Grown, RequestState
from rankhoist.runtime.weights import filled


class Appending(Halves, CatalogueScoring):
    """A model whose states grow where an axis of its context varies."""

    def prepare(
        self, context_inputs: Mapping[str, Any] | Sequence[Any], candidates: int | None = None,
        store: Store | None = None, *, growing: bool | Sequence[str] = False,
    ) -> RequestState:  # fmt: skip
        """The context work of R requests: `{name: [R, ...]}` (or the context inputs in order) -> state.

        For a packed input, pass its context columns `[R, context columns]`. `candidates` is how many will be scored
        with the state, in all, if it is not what the model was hoisted for: it chooses the plan, not the scores. Where
        candidates will be scored by a `store`, it is computed for that store, and with the store's version of the
        weights.

        Args:
            growing: keep what `append` needs beside, of all inputs with an axis that varies or of those named here.

        Raises:
            InputError: see `forward`; `growing` names an input that has no axis that varies.
            AppendError: a longer history changes what was computed of the shorter one; says which operator.
        """
        if not growing:
            return super().prepare(context_inputs, candidates, store)
        if store is not None:
            raise InputError("a state for a store of items does not grow: prepare it without one")
        context, requests = self._context(context_inputs, candidates)
        lengths = self._lengths(growing)
        way = self.plans.at(candidates, requests)
        if self.stages.variants[way.plan].conditional:  # what holds for a history need not for a longer one
            way = Way(self.plans.for_all(way.plan))
        with torch.no_grad():
            made, weights = self._growing(way.plan, lengths), self._weights
            arguments = filled(weights.arguments[way.plan][0], {}, context)
            kept = self._guard.watched(made.prepare, Feed((requests, None, None, *arguments), "context", context))
            sizes = {
                n: context[names[0][0]].shape[names[0][1].axis]
                for n, names in self._inputs.lengths.items()
                if n in lengths
            }
            return self._state(RequestState(requests, {}, weights, Way(way.plan)), kept, sizes).apart(context)

    def append(self, state: RequestState, events: Mapping[str, Any]) -> RequestState:
        """A state whose history is longer by `events`, equal to `prepare` of that history; `state` stays as it is.

        Args:
            state: of `prepare(..., growing=True)`, or of `append`.
            events: what is new at the end of the axis that varies, `{name: [R, 1, ...]}` (or several positions), of
                all inputs that have its length. Other inputs stay what they were.

        Raises:
            InputError: the state does not grow along this input, an event has another shape, or the history would be
                longer than the model takes.
            VocabularyError: an id is outside of the table that it indexes.
        """
        self._check_state(state)
        lengths = self._inputs.lengths
        if state.grown is None:
            raise InputError("this state cannot grow: prepare it with growing=True")
        found = [length for length, own in lengths.items() if any(name in events for name, _ in own)]
        named = [name for own in lengths.values() for name, _ in own]
        if not found or not {*events} <= {*named}:
            raise InputError(f"append takes events of {', '.join(named)}; got {', '.join(events) or 'none'}")
        given = dict(mapping_of(events, "events", "{name: tensor}"))
        with torch.no_grad():
            for length in found:
                state = self._appended(state, length, given)
            return state.apart(given)

    def _appended(self, state: RequestState, length: str, events: dict[str, Any]) -> RequestState:
        own, grown = self._inputs.lengths[length], state.grown
        name, axis = own[0]
        if grown is None or length not in grown.lengths:
            raise InputError(f"this state does not grow along {name!r}: name it in growing when it is prepared")
        size = grown.lengths[length] + self._new(state, length, events)
        if not axis.holds(size):
            raise InputError(
                f"a history of {size} is longer than input {name!r} takes, {axis.text}: prepare a state of its last "
                "events"
            )
        step = self._growing(state.plan, tuple(grown.lengths)).steps[length]
        given = step.filled(state.requests, state.weights.arguments[state.plan][0], grown.kept, events)
        feed = Feed(given, "context", {name: events[name] for name, _ in own})
        kept = self._guard.watched(step.run, feed)
        return self._state(state, kept, {**grown.lengths, length: size})

    def _new(self, state: RequestState, length: str, events: dict[str, Any]) -> int:
        """How many positions the events have, which are checked."""
        own, found = self._inputs.lengths[length], {}
        for name, axis in own:
            if name not in events:
                raise InputError(f"missing events of {name!r}, which has the length of {', '.join(n for n, _ in own)}")
            row, event = self._inputs.events[length, name], events[name]
            if not isinstance(event, Tensor) or not row.fits(event.shape[1:]) or event.dtype != row.dtype:
                events[name] = in_own_width(name, event, "context", row, "requests")
            if len(event) != state.requests:
                raise InputError(f"events of {name!r} have {len(event)} rows, and the state {state.requests} requests")
            found[f"axis {axis.axis} of {name!r}"] = event.shape[axis.axis]
        return one_length(found, "events")

    def _state(self, state: RequestState, kept: Sequence[Any], lengths: Mapping[str, int]) -> RequestState:
        nodes = self.stages.variants[state.plan].state
        tensors = dict(zip(nodes, kept, strict=False))
        return replace(state, tensors=tensors, grown=Grown(tuple(kept), lengths))

    # -- which graphs

    def _lengths(self, asked: bool | Sequence[str]) -> tuple[str, ...]:
        axes = self._inputs.lengths
        if not axes:
            raise InputError(
                "no axis of a context input varies: hoist with dynamic={input: axis} for a state that grows"
            )
        if asked is True:
            return tuple(axes)
        names = [asked] if isinstance(asked, str) else list(asked or ())
        by_name = {name: length for length, own in axes.items() for name, _ in own}
        unknown = [name for name in names if name not in by_name]
        if unknown:
            raise InputError(f"growing names {unknown[0]!r}; inputs with an axis that varies are {', '.join(by_name)}")
        return tuple(dict.fromkeys(by_name[name] for name in names))

    def _growing(self, plan: int, lengths: tuple[str, ...]) -> Growing:
        """The graphs of a plan whose states grow along these; made once."""
        if (plan, lengths) not in self._grown:  # several threads may make them; one's are kept
            self._grown.setdefault((plan, lengths), self._made_growing(plan, lengths))
        return self._grown[plan, lengths]

    def _made_growing(self, plan: int, lengths: tuple[str, ...]) -> Growing:
        stages, stage, axes = self.stages, self.stages.variants[plan].request, self._inputs.lengths
        for length in lengths:
            names = [name for name, _ in axes[length]]
            if len({*names}) < len(names):
                raise AppendError(f"two axes of input {names[0]!r} have one length: no event adds to both")
        uniform, leaves = uniform_weights(stages), [*stage.nodes, *stage.leaves]
        rows = {}
        for name, row in self._inputs.expected["context"].items():
            sizes = with_lengths(row.shape, row.varying, lambda v: max(v.low, 3 if v.high is None else min(3, v.high)))
            rows[name] = torch.empty(sizes, dtype=row.dtype, device="meta")
        try:
            return make_growing(
                stage, self._weights.arguments[plan][0], rows,
                {length: _varies(axes[length]) for length in lengths},
                {i: uniform[leaf] for i, leaf in enumerate(leaves) if leaf in uniform},
            )  # fmt: skip
        except RefusedError as refused:
            operators = self.blueprint.report().operators
            where = next((f" in {o.module}" for o in operators if o.name == refused.source and o.module), "")
            raise AppendError(
                f"a state of this model does not grow: {refused.operator} ({refused.source}{where}) {refused.reason}. "
                "Prepare anew where the history gets longer"
            ) from None


def _varies(own: Sequence[tuple[str, Varying]]) -> Varies:
    """The axes of one length, which have the same bounds."""
    _, axis = own[0]
    return Varies({name: a.axis for name, a in own}, axis.low, axis.high)
