"""The catalogue that a model is served with: requests name its items, and it is filled from files or by requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rankhoist_client import v2
from rankhoist_client.refusal import RequestError

from rankhoist.errors import InputError, ServeError
from rankhoist.runtime import HoistedModel, RequestState, Store
from rankhoist.runtime.catalogue import files
from rankhoist.runtime.plain import as_dtype
from rankhoist.serve.columns import read_columns
from rankhoist.serve.config import Settings
from rankhoist.serve.features import Feature
from rankhoist.serve.inputs import Batch, Limits, Rows, Signature

SHOWN = 10  # unknown ids that a refusal names
LONGEST = 256  # characters of an id that comes in a request: all ids have the room of the longest
KINDS = {"i": "INT64", "U": v2.TEXT}


@dataclass(frozen=True)
class Items:
    """A store, and the name of the feature whose values are its ids.

    `built`: it was made for this server, which may change it.
    """

    store: Store
    name: str
    built: bool = True

    @property
    def feature(self) -> Feature:
        """The ids."""
        kind = KINDS[self.store.ids.dtype.kind]
        return Feature(self.name, self.name, "candidate", kind, (), names_items=True)

    def known(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the items there are, `[N]`."""
        return self.store.known(self.comparable(ids))

    def score(self, hoisted: HoistedModel, state: RequestState, batch: Batch) -> Any:
        """What a model returns for candidates that are items.

        Raises:
            RequestError: some there are not.
        """
        assert batch.ids is not None, "its signature has ids"
        ids = self.comparable(batch.ids)
        try:
            return hoisted.score(
                state, None, batch.offsets, store=self.store, ids=ids, pair_inputs=batch.candidates
            )  # fmt: skip
        except InputError as error:
            unknown = batch.ids[~self.known(batch.ids)].tolist()
            if unknown:
                raise _unknown(unknown, self.name) from None
            raise RequestError("unknown_item", str(error), self.name) from None  # it came back since

    def comparable(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Ids as the store has them; a text that is longer than all of its own is cut, and still none of them."""
        if ids.dtype != object:
            return ids
        longest = self.store.ids.dtype.itemsize // 4
        return np.array([x[: longest + 1] for x in ids.tolist()], dtype=np.str_)


def _unknown(ids: Sequence[Any], name: str) -> RequestError:
    shown = ", ".join(f"{x!r:.60}" for x in ids[:SHOWN])
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return RequestError("unknown_item", f"the catalogue has no items with these ids: {shown}{more}", name)


def known_only(batch: Batch, known: NDArray[np.bool_]) -> Batch:
    """The batch without the candidates that are not known."""
    assert batch.ids is not None, "its signature has ids"
    rows = np.flatnonzero(known)
    before = np.concatenate([[0], np.cumsum(known)])
    return replace(
        batch,
        candidates={name: x[rows] for name, x in batch.candidates.items()},
        rows=len(rows),
        offsets=None if batch.offsets is None else before[batch.offsets].tolist(),
        ids=batch.ids[rows],
    )


def spread(array: NDArray[Any], known: NDArray[np.bool_], datatype: str) -> NDArray[Any]:
    """Scores of those that are known in the places of all; the others have none: NaN."""
    none = 0x7FC0 if datatype == "BF16" else np.nan
    made = np.full((len(known), *array.shape[1:]), none, array.dtype)
    made[known] = array
    return made


# -- filled


def stocked(hoisted: HoistedModel, source: Path, folder: Path | None, settings: Settings) -> Items:
    """The catalogue in a folder, opened, or one that is built of Parquet files: in `folder`, or in memory.

    Raises:
        RankhoistError: there is none, it is another model's, or the files are not what the model takes.
    """
    if (source / files.NAME).exists():
        items = Items(hoisted.open_catalogue(source), settings.item_id, built=False)
    else:
        from rankhoist.score.items import ItemFiles  # of another extra

        found = ItemFiles([str(source)], hoisted, settings.item_id)
        dtype = None if settings.catalogue_dtype is None else as_dtype(settings.catalogue_dtype)
        store = hoisted.catalogue_in_pieces(found.pieces(), found.count, path=folder, dtype=dtype)
        items = Items(store, settings.item_id)
    if not len(items.store):
        raise ServeError(f"the catalogue in {source} has no items")
    return items


def read_items(body: bytes, signature: Signature, settings: Settings) -> tuple[NDArray[Any], dict[str, Rows]]:
    """Ids and inputs of items: {"items": {"item_id": [...], "price": [...]}}, in columns or in rows.

    Raises:
        RequestError: the body is something else; the feature and the row are named.
    """
    found = v2.read_object(body)
    if found.keys() != {"items"}:
        raise RequestError("malformed", "the body is an object with one key, 'items'")
    limits = Limits(settings.max_candidates, allow_nan=settings.allow_nan)
    batch = signature.check(read_columns(found["items"], "candidate", signature, "items"), limits)
    assert batch.ids is not None, "its signature has ids"
    ids = batch.ids.tolist()
    if len(set(ids)) < batch.rows:
        raise RequestError("malformed", "an item is given twice")
    if batch.ids.dtype == object and (longest := max(map(len, ids), default=0)) > LONGEST:
        raise RequestError("too_large", f"an id has {longest} characters, the most are {LONGEST}")
    return batch.ids, batch.candidates


class Keeper:
    """Writes to a catalogue that others have open."""

    def __init__(self, hoisted: HoistedModel, folder: Path, settings: Settings) -> None:
        self._settings = settings
        self._items = Items(hoisted.open_catalogue(folder, write=True), settings.item_id)
        self._signature = Signature.of_items(hoisted, self._items.feature)

    def put(self, body: bytes) -> int:
        """Items that are new, or in the place of those that are there; the number of the catalogue's edition then."""
        ids, inputs = read_items(body, self._signature, self._settings)
        self._items.store.update(inputs, ids.astype(np.str_) if ids.dtype == object else ids)
        return self._items.store.edition.number
