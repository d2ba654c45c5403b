"""The methods of a hoisted model that make a store of items, and that score by one."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankhoist.arguments import of_kind, path_of
from rankhoist.capture.jagged import Jagged
from rankhoist.compiler.emit import Catalogue, Stages
from rankhoist.compiler.plan import Way
from rankhoist.errors import InputError
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.catalogue.best import best
from rankhoist.runtime.catalogue.build import Piece, build
from rankhoist.runtime.catalogue.index import Ids
from rankhoist.runtime.catalogue.stage import ItemStage, blocks
from rankhoist.runtime.catalogue.store import Given, Store, ids_of, opened
from rankhoist.runtime.ids import Feed, Guard
from rankhoist.runtime.offsets import Offsets, blocks_of
from rankhoist.runtime.scoring import Candidates, RequestState, Scoring
from rankhoist.runtime.weights import Weights, filled

Progress = Callable[[list[Any]], Iterable[Any]]


class CatalogueScoring(Scoring):
    """Scoring where items may have a store. Inputs then have three sides: `context`, `item` and `pair`."""

    blueprint: Blueprint
    stages: Stages
    _guard: Guard

    # -- the store

    def catalogue(
        self,
        items: Mapping[str, Any] | Sequence[Any],
        ids: Given | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        dtype: torch.dtype | None = None,
        progress: Progress = iter,
    ) -> Store:
        """What scoring needs of each item, computed once with the weights of now: M items, in blocks.

        Args:
            items: the item inputs `{name: [M, ...]}`, or in order; of a packed input its item columns.
            ids: of the items `[M]`, whole numbers or strings (default: their row numbers).
            path: a folder to keep it in, which other processes open with `open_catalogue`; without it, it is in memory.
            dtype: what floats are kept in (default: as they are); `bfloat16` halves the store, `int8` quarters it,
                at an error that `rankhoist.verify(hoisted, model, store=store)` measures.
            progress: wraps the list of blocks, for instance to draw a bar.

        Raises:
            InputError: no input is marked as the item's; one is missing or has the wrong dtype, shape or row count; an
                id is there twice.
            VocabularyError: an input has an id outside of the table that it indexes.
            ArtifactError: the folder cannot be written.
        """
        stage = self._item_stage()
        given, count = stage.checked(items)
        names = np.arange(count) if ids is None else ids_of(ids, count)

        def piece(bounds: tuple[int, int]) -> Piece:
            return names[slice(*bounds)], {name: x[slice(*bounds)] for name, x in given.items()}

        return build(stage, map(piece, progress(blocks(count))), count, None if path is None else path_of(path), dtype)

    def catalogue_in_pieces(
        self, pieces: Iterable[Piece], count: int, *, path: str | os.PathLike[str] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Store:  # fmt: skip
        """As `catalogue`, of items that are not in memory all at once.

        Args:
            pieces: ids `[K]` and inputs `{name: [K, ...]}` of some items after the other.
            count: of all items.

        Raises:
            InputError: see `catalogue`; there are more items or fewer.
            ArtifactError: the folder cannot be written.
        """
        return build(self._item_stage(), pieces, count, None if path is None else path_of(path), dtype)

    def open_catalogue(self, path: str | os.PathLike[str], *, write: bool = False) -> Store:
        """The store that `catalogue(..., path=...)` has written, mapped into memory, for the weights of now.

        Args:
            write: its changes come into the folder; of all that have it open, one process may. Without it they are this
                process's own.

        Raises:
            ArtifactError: there is none, it is damaged, or it is of another model or of other weights.
        """
        return opened(self._item_stage(), path, write)

    def _item_stage(self) -> ItemStage:
        return ItemStage(self._of_items(), self.weights, self._inputs, self._guard)

    def _of_items(self) -> Catalogue:
        if self.stages.catalogue is None:
            raise InputError("no input is marked as the item's: hoist the model with item=[...] to score by a store")
        return self.stages.catalogue

    @property
    @abstractmethod
    def weights(self) -> Weights:
        """The version in use."""

    # -- scoring

    def prepare(
        self, context_inputs: Mapping[str, Any] | Sequence[Any], candidates: int | None = None,
        store: Store | None = None,
    ) -> RequestState:  # fmt: skip
        """The context work of R requests: `{name: [R, ...]}` (or the context inputs in order) -> state.

        For a packed input, pass its context columns `[R, context columns]`. `candidates` is how many will be scored
        with the state, in all, if it is not what the model was hoisted for: it chooses the plan, not the scores. Where
        candidates will be scored by a `store`, it is computed for that store, and with the store's version of the
        weights.

        Raises:
            InputError: see `forward`.
        """
        if store is None:
            return super().prepare(context_inputs, candidates)
        _store(store).check(self._of_items())
        context, requests = self._context(context_inputs, candidates)
        with torch.no_grad():
            return self._prepare_with(store, context, requests, candidates).apart(context)

    def score(
        self,
        state: RequestState,
        candidate_inputs: Mapping[str, Any] | Sequence[Any] | None = None,
        request_offsets: Offsets | None = None,
        *,
        store: Store | None = None,
        rows: Given | None = None,
        ids: Given | None = None,
        pair_inputs: Mapping[str, Any] | Sequence[Any] = (),
    ) -> Any:
        """Scores of N candidates for a prepared state, as often as you like: of `{name: [N, ...]}`, or by a store.

        Args:
            store: has the items, which `rows` or `ids` name, `[N]`, one per candidate.
            pair_inputs: what is neither context nor the item's, `{name: [N, ...]}`.

        Raises:
            InputError: see `forward`; an item is not in the store; the state was prepared for no store, or with other
                weights than the store was made with.
        """
        self._check_state(state)
        if store is None:
            if candidate_inputs is None:
                raise InputError("pass the candidate inputs, or a store and the rows or ids of its items")
            if state.with_store:
                raise InputError("the state was prepared for a store: score(state, store=store, ...)")
            if rows is not None or ids is not None or len(pair_inputs):
                raise InputError(
                    "rows=, ids= and pair_inputs= are of a store: pass store=, or the candidate inputs alone"
                )
            return super().score(state, candidate_inputs, request_offsets)
        if candidate_inputs is not None:
            raise InputError("with a store, pass rows= or ids= and pair_inputs= in place of the candidate inputs")
        _store(store).check(self._of_items())
        if not state.with_store:
            raise InputError("the state was prepared for no store: prepare(context, store=store)")
        if state.weights is not store.weights:
            raise InputError(
                "the state and the store are of different versions of the weights: prepare the state with the store, "
                "and after update_weights make the store again"
            )
        with torch.no_grad():
            kept, count = store.read(state.plan, rows, ids)
            pairs = self._pairs(pair_inputs, count)
            blocks = blocks_of(request_offsets, state.requests, count)
            return self._score_with(state, kept, Candidates(self._inputs.stage_inputs(pairs), count, blocks))

    def rank_all(
        self,
        state: RequestState,
        store: Store,
        k: int = 100,
        *,
        pair_inputs: Mapping[str, Any] | Sequence[Any] = (),
        by: Callable[[Any], Any] = lambda result: result,
    ) -> tuple[Ids, Tensor]:
        """Ids `[k]` and scores `[k]` of the best items of the whole store for one request, the best first.

        It reads the store block by block; updates meanwhile are seen from the next block on.

        Args:
            k: how many; of a smaller store all.
            pair_inputs: one row of what is neither context nor the item's, `{name: [1, ...]}`, the same for all items.
            by: picks the score `[N]` of what the model returns, such as one of several outputs.

        Raises:
            InputError: see `score`; the state has several requests, or what is ranked by is not one number per item.
        """
        self._check_state(state)
        _store(store).check(self._of_items())
        if state.requests != 1:
            raise InputError(f"all items are ranked for one request, and the state has {state.requests}")
        one = self._pairs(pair_inputs, 1)

        def scored(rows: Tensor) -> Any:
            pairs = {name: _repeated(x, len(rows)) for name, x in one.items()}
            return by(self.score(state, store=store, rows=rows, pair_inputs=pairs))

        return best(store.index, k, scored)

    def _pairs(self, given: Mapping[str, Any] | Sequence[Any], rows: int) -> dict[str, Any]:
        pairs = self._inputs.of_side("pair", given)
        found = self._inputs.accept("pair", pairs) if pairs else rows
        if found != rows:
            raise InputError(f"there are {found} rows of pair inputs for {rows} items")
        return pairs

    # -- the two halves of a call

    def _prepare_with(
        self, store: Store, context: dict[str, Tensor], requests: int, candidates: int | None
    ) -> RequestState:
        plans = self.blueprint.with_store
        assert plans is not None, "there are stages for a store"
        number = plans.at(candidates, requests).plan
        variant = self._of_items().variants[number]
        arguments = filled(store.weights.with_store[number][0], {}, context)
        feed = Feed((requests, None, None, *arguments), "context", context)
        made = self._guard.watched(variant.request.run, feed) if variant.state else ()
        state = dict(zip(variant.state, made, strict=True))
        return RequestState(requests, state, store.weights, Way(number), with_store=True)

    def _score_with(self, state: RequestState, kept: Mapping[int, Tensor], candidates: Candidates) -> Any:
        pairs, rows, blocks = candidates
        offsets, owner = (None, None) if blocks is None else blocks.on(self.device)
        arguments = filled(state.weights.with_store[state.plan][1], {**state.tensors, **kept}, pairs)
        stage = self._of_items().variants[state.plan].candidate
        feed = Feed((rows, owner, offsets, *arguments), "pair", pairs)
        return self.interface.result(self._guard.watched(stage.run, feed))


def _store(given: Store) -> Store:
    return of_kind(given, Store, "store", "what catalogue returns")


def _repeated(row: Tensor | Jagged, count: int) -> Tensor | Jagged:
    """One row `[1, ...]`, so many times."""
    return row.repeat_interleave(count) if isinstance(row, Jagged) else row.expand(count, *row.shape[1:])
