"""Serving on a GPU, as far as a CPU shows it: out of memory, counts of replays, a device that is not there."""

from __future__ import annotations

import asyncio
import typing
from typing import Any

import numpy as np
import pytest
import serving
import torch
from rankhoist_client.refusal import RequestError
from test_serve_parts import checked
from torch.utils._python_dispatch import TorchDispatchMode

from rankhoist.compiler.targets.backends import BACKENDS
from rankhoist.errors import ServeError
from rankhoist.serve import loading
from rankhoist.serve.compute import Compute, Job
from rankhoist.serve.config import Settings, settings_of
from rankhoist.serve.model import ServedModel
from rankhoist.serve.states import States


@pytest.mark.parametrize("joins", [True, False])
def test_out_of_memory_is_a_refusal_and_the_next_call_is_scored(joins):
    """Of an operator in the middle of the candidate stage, where a call is large; prepared states are given up."""
    model = ServedModel("ranker", "1", serving.hoisted_ranker(), States(2**20, 60.0), batch_up_to=100 if joins else 0)
    batches = [checked(model, rows, seed=rows) for rows in (4, 50, 5)]
    model.score(batches[0], "user")
    assert len(model.states._entries) == 1

    class Small(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.dim() > 1 and made.shape[0] >= 50:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return made

    scored = model.score

    def score(batch, key=None):
        with Small():
            return scored(batch, key)

    model.score = score

    async def ask() -> list[Any]:
        compute = Compute(most=100)
        with compute._changed:
            jobs = [Job(model, batch) for batch in batches]
            compute._jobs.extend(jobs)
            compute._changed.notify()
        results = await asyncio.wait_for(asyncio.gather(*(j.future for j in jobs), return_exceptions=True), 60)
        compute.close()
        return results

    first, refused, last = asyncio.run(ask())
    assert isinstance(refused, RequestError) and (refused.reason, refused.status) == ("out_of_memory", 503)
    assert str(refused) == "there is not enough memory to score 50 candidates now" and not model.states._entries
    for batch, found in ((batches[0], first), (batches[2], last)):
        for name, expected in scored(batch).outputs.items():
            np.testing.assert_allclose(found.outputs[name], expected, rtol=2e-5, atol=2e-6)


def test_replays_are_counted():
    """A stand-in records on a CPU as a GPU does; what is counted is what was run since the last call."""
    model = ServedModel("counted", "1", serving.hoisted_ranker())
    model.hoisted.to_backend("graphs")
    for rows in (4, 4, 0):
        model.score(checked(model, rows, seed=rows))
    found = {how: counter._value.get() for how, counter in model.metrics.calls.items()}
    counts = model.hoisted.replay_counts
    assert found == {"replayed": counts.replayed, "as_they_are": counts.as_they_are} and counts.replayed >= 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what is said where there is no CUDA device")
def test_a_device_that_is_not_there(tmp_path):
    hoisted = serving.hoisted_ranker()
    with pytest.raises(ServeError, match="device 'cuda' cannot be used: "):
        loading.placed(hoisted, Settings(device="cuda"))
    with pytest.raises(ServeError, match="catalogues are served on the CPU"):
        loading.placed(hoisted, Settings(device="cuda", catalogues={"m": tmp_path}))
    assert loading.placed(hoisted, Settings()) is hoisted
    with pytest.raises(ValueError, match="device"):
        Settings(device="tpu")


def test_a_backend_is_chosen(monkeypatch):
    """By a flag, the environment or a file; by default it is what the model was tuned for."""
    monkeypatch.setenv("RANKHOIST_BACKEND", "openvino")
    assert loading.placed(serving.hoisted_ranker(), Settings()).backend == "openvino"
    assert loading.placed(serving.hoisted_ranker(), Settings(backend="eager")).backend == "eager"
    assert set(typing.get_args(typing.get_args(Settings.model_fields["backend"].annotation)[0])) == {*BACKENDS}
    with pytest.raises(ServeError, match=r"backend: Input should be 'eager', .*'openvino'"):
        settings_of({"backend": "tensorrt"})
