"""What torch finds out about every tensor that it traces, and nobody reads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from rankhoist.capture.unread import FOUND_OUT, unread


def found_out() -> list[Any]:
    """What a graph has beside the tensors of its operators."""
    program = torch.export.export(torch.nn.Linear(2, 1), (torch.ones(3, 2),))
    return [node.meta.get("tensor_meta") for node in program.graph.nodes if node.op == "call_function"]


def test_it_is_left_out_in_this_thread_and_meanwhile():
    with unread(), ThreadPoolExecutor(1) as another:
        here, there = found_out(), another.submit(found_out).result()
    behind = found_out()
    assert here == [None]
    assert there == behind != here


def test_torch_has_it_where_it_is_looked_for():
    from torch.fx.experimental import proxy_tensor

    assert hasattr(proxy_tensor, FOUND_OUT)
