"""Contexts that come again under their key with more events: their state goes on; no other passes for them."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import serving
import torch
from growing import CHANGES, GROWS, Reads
from lengthy import ROWS, rows_of
from rankhoist_client import CallError, Client, v2
from rankhoist_client.refusal import RequestError
from torch import Tensor, nn

import rankhoist
from rankhoist.capture import Jagged, Varying
from rankhoist.serve.inputs import Limits
from rankhoist.serve.longer import events, kept
from rankhoist.serve.model import ServedModel
from rankhoist.serve.states import States

AXES = {"history": (Varying(1, "length", 1, 50),), "times": (Varying(2, "length", 1, 50),)}
HISTORY, TIMES = torch.arange(12).reshape(2, 6), torch.randn(2, 3, 6)
BAGS = Jagged(torch.arange(5), lengths=torch.tensor([2, 3]))
CONTEXT = {"history": HISTORY[:, :4], "times": TIMES[..., :4], "user": torch.tensor([3, 4]), "bags": BAGS}


def test_what_is_new_of_a_context():
    longer = CONTEXT | {"history": HISTORY, "times": TIMES}
    new = events(kept(CONTEXT), longer, AXES)
    assert new is not None and new.keys() == {"history", "times"}
    assert torch.equal(new["history"], HISTORY[:, 4:]) and torch.equal(new["times"], TIMES[..., 4:])


OTHERS: dict[str, dict[str, Tensor | Jagged]] = {
    "the same": {},
    "shorter": {"history": HISTORY[:, :3]},
    "another event": {"history": torch.cat([HISTORY[:, 1:5], HISTORY[:, 5:]], 1)},
    "a window that slid": {"history": HISTORY[:, 1:6]},
    "another user": {"history": HISTORY, "user": torch.tensor([3, 5])},
    "more requests": {"history": torch.cat([HISTORY, HISTORY])},
    "longer along an axis that does not vary": {"times": torch.cat([TIMES, TIMES], 1)[..., :4]},
    "longer along two axes": {"times": torch.cat([TIMES, TIMES], 1)},
    "other bags": {"history": HISTORY, "bags": Jagged(torch.arange(5), lengths=torch.tensor([3, 2]))},
    "more bags": {"bags": Jagged(torch.arange(6), lengths=torch.tensor([2, 4]))},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_context_is_not_one_with_more_events(other: str):
    assert events(kept(CONTEXT), CONTEXT | OTHERS[other], AXES) is None


@functools.cache
def of(reads: str) -> tuple[nn.Module, rankhoist.HoistedModel]:
    model = Reads({reads: (GROWS | CHANGES)[reads]})
    context, candidate = rows_of(9, ROWS)
    return model, rankhoist.hoist(model, context | candidate, context=["history"], dynamic={"history": {1: (1, 60)}})


def score(served: ServedModel, length: int, key: str = "user", seed: int = 3) -> list[np.ndarray]:
    context, candidate = rows_of(30, seed=seed)
    given = {"history": context["history"][:, :length], **candidate}
    batch = served.signature.check({name: v2.tensor_of(x.numpy()) for name, x in given.items()}, Limits(100))
    return list(served.score(batch, key).outputs.values())


def counts(served: ServedModel) -> dict[str, float]:
    return {n: getattr(served.metrics, n)._value.get() for n in ("hits", "grown", "misses")}


def changed(before: dict[str, float], now: dict[str, float]) -> tuple[float, ...]:
    return tuple(now[name] - value for name, value in before.items())


@pytest.mark.parametrize(("reads", "grows"), [("last_step", True), ("both_ways", False)])
def test_a_longer_history_scores_as_one_that_is_new(reads: str, grows: bool):
    model, hoisted = of(reads)
    served = ServedModel(reads, "1", hoisted, States(2**20, 60.0))
    served.warm_up()
    assert served.grows == grows
    context, candidate = rows_of(30, seed=3)
    before = counts(served)
    for length in (5, 6, 6, 8, 20, 20):
        with torch.no_grad():
            want = model(context["history"][:, :length].expand(ROWS, -1), candidate["item"])
        for got, truth in zip(score(served, length), want, strict=True):
            np.testing.assert_allclose(got, truth, atol=1e-10)
        assert 0 < served.states.bytes < 2**16
    assert changed(before, counts(served)) == ((2, 2, 2) if grows else (2, 0, 4))
    with pytest.raises(RequestError, match="another context"):
        score(served, 21, seed=4)
    score(served, 4, key="of another")
    served.free()
    assert served.states.bytes == 0


def test_no_states_are_kept_where_there_is_no_room():
    served = ServedModel("none", "1", of("last_step")[1], States(0, 60.0))
    served.warm_up()
    assert not served.grows
    for length in (5, 6):
        assert np.isfinite(score(served, length)).all()


def test_a_client_sends_longer_histories_under_one_key(tmp_path: Path):
    model, hoisted = of("last_step")
    hoisted.save(tmp_path / "any.rankhoist")
    with serving.serving(tmp_path / "any.rankhoist") as server:
        context, candidate = rows_of(30, seed=3)
        with Client(f"http://127.0.0.1:{server.port}") as client:
            for length in (5, 6, 7, 8):
                history = context["history"][:, :length]
                got = client.rank("any", {"history": history.numpy()}, {"item": candidate["item"].numpy()},
                                  context_key="user")  # fmt: skip
                with torch.no_grad():
                    (want,) = model(history.expand(ROWS, -1), candidate["item"])
                np.testing.assert_allclose(next(iter(got.outputs.values())), want, atol=1e-10)
            assert re.search(r'rankhoist_state_cache_grown_total\{model="any"\} 2.0', client.metrics())
            with pytest.raises(CallError, match="used with another context"):
                client.rank("any", {"history": history[:, 1:].numpy()}, {"item": candidate["item"].numpy()},
                            context_key="user")  # fmt: skip
