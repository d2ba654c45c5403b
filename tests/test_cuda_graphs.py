"""What records CUDA graphs, by the rules of CUDA and PyTorch as `pretended_cuda` has them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
import torch
from on_device import CUDA, Device, device
from torch import Tensor

from rankhoist.bench.baselines import graphed
from rankhoist.compiler.targets import cuda_graphs
from rankhoist.compiler.targets.cuda_graphs import CudaGraphs, wait_for


@pytest.fixture
def gpu() -> Iterator[Device]:
    with device() as made:
        yield made


def plus_one(x: Tensor) -> tuple[Tensor]:
    return (x + 1,)


def failing(recorder: CudaGraphs, x: Tensor) -> None:
    """A capture that ends before its end."""
    with recorder.turn(), pytest.raises(RuntimeError, match="capture"):
        recorder.record(lambda: (x + float(x.sum()),))


def test_a_replay_reads_what_its_inputs_hold_then(gpu: Device):
    x, recorder = torch.zeros(3, device="cuda"), CudaGraphs(CUDA)
    with recorder.turn():
        recording = recorder.record(lambda: plus_one(x))
        x.fill_(4.0)
        recording.replay()
    assert recording.outputs[0].cpu().tolist() == [5.0] * 3
    assert gpu.driver.replays == 2, "one when it was recorded"


def test_a_capture_is_warmed_up_on_its_own_stream_and_has_its_own_memory(gpu: Device, monkeypatch: pytest.MonkeyPatch):
    """The workspaces of libraries are made anew within it, and nobody has them after it."""
    log: list[str] = []
    monkeypatch.setattr(cuda_graphs, "_forget_workspaces", lambda: log.append("workspaces"))
    x, recorder = torch.zeros(3, device="cuda"), CudaGraphs(CUDA)

    def function() -> tuple[Tensor]:
        assert torch.cuda.current_stream() is recorder._stream
        log.append("captured" if torch.cuda.is_current_stream_capturing() else "run")
        return plus_one(x)

    with recorder.turn():
        recording = recorder.record(function)
    assert log == ["run", "run", "workspaces", "captured", "workspaces"]
    assert recording.bytes == 12 and recorder.usable()


def test_turns_on_one_stream_wait_for_nothing(gpu: Device):
    recorder = CudaGraphs(CUDA)
    for _ in range(3):
        with recorder.turn():
            recorder.settle()
    assert gpu.driver.waited == []


def test_after_a_capture_that_fails_all_goes_on(gpu: Device):
    """On the caller's stream, with random numbers, and with a pool of its own for the next."""
    x, recorder, driver = torch.zeros(3, device="cuda"), CudaGraphs(CUDA), gpu.driver
    mine, pool = torch.cuda.Stream(), recorder._pool
    with torch.cuda.stream(mine):
        failing(recorder, x)
        assert torch.cuda.current_stream() is mine and driver.random and recorder._pool is not pool
        with recorder.turn():
            recorder.record(lambda: plus_one(x)).replay()


def test_a_failure_before_the_capture_leaves_nothing_behind(gpu: Device):
    recorder, before = CudaGraphs(CUDA), torch.cuda.current_stream()
    with recorder.turn(), pytest.raises(ZeroDivisionError):
        recorder.record(lambda: (1 / 0,))
    assert torch.cuda.current_stream() is before and gpu.driver.random


def test_a_pool_that_no_graph_holds_is_not_used_again(gpu: Device):
    """Also where a result of the last one is still there."""
    x, recorder = torch.zeros(3, device="cuda"), CudaGraphs(CUDA)
    with recorder.turn():
        first, second = (recorder.record(lambda: plus_one(x)) for _ in range(2))
        assert len(gpu.driver.used) == 1, "graphs that are there share one"
        kept = first.outputs
        del first, second
        gc.collect()
        recorder.record(lambda: plus_one(x))
    assert len(gpu.driver.used) == 2 and len(kept) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_device_stays_the_current_one(gpu: Device, fails: bool):
    x, there = torch.zeros(3, device="cuda"), CudaGraphs(torch.device("cuda", 1))
    gpu.driver.current = torch.cuda.Stream(torch.device("cuda", 1))
    if fails:
        failing(there, x)
    else:
        with there.turn():
            there.record(lambda: plus_one(x))
    assert torch.cuda.current_device() == 0


def test_nobody_waits_for_the_device_meanwhile(gpu: Device):
    """Another thread's new weights wait until the capture has ended; so does another model's first step."""
    x, recorder, others = torch.zeros(3, device="cuda"), CudaGraphs(CUDA), CudaGraphs(CUDA)
    waiting: list[threading.Thread] = []

    def record() -> None:
        with others.turn():
            others.record(lambda: ())

    def function() -> tuple[Tensor]:
        if torch.cuda.is_current_stream_capturing():
            for target in (lambda: wait_for(CUDA), record):
                waiting.append(threading.Thread(target=target))
                waiting[-1].start()
                waiting[-1].join(0.05)
                assert waiting[-1].is_alive(), "it waits until the capture has ended"
        return plus_one(x)

    with recorder.turn():
        recorder.record(function)
    for thread in waiting:
        thread.join(10)
        assert not thread.is_alive()


def test_captures_have_a_stream_that_nobody_else_is_given(gpu: Device):
    one, other = CudaGraphs(CUDA), CudaGraphs(torch.device("cuda"))
    assert one._stream is other._stream and one._stream.priority == -1, "of all models"


def test_one_stream_after_another(gpu: Device):
    """A replay on another stream waits for the one before it, on the device."""
    x, recorder = torch.zeros(3, device="cuda"), CudaGraphs(CUDA)
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first), recorder.turn():
        recording = recorder.record(lambda: plus_one(x))
    gpu.driver.waited.clear()
    for stream in (first, second, second, first):
        with torch.cuda.stream(stream), recorder.turn():
            recording.replay()
    assert gpu.driver.waited == [(second, first), (first, second)]


def test_a_recorded_baseline_reads_the_same_inputs_again(gpu: Device):
    """What cannot be recorded fails, and leaves nothing behind for the next."""
    x = torch.zeros(3, device="cuda")
    with pytest.raises(RuntimeError, match="capture"):
        graphed(lambda: x[x > 0])
    call = graphed(lambda: {"scores": x + 1})
    x.fill_(4.0)
    assert call()["scores"].cpu().tolist() == [5.0] * 3 and torch.cuda.current_stream().graph is None
