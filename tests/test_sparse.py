"""Models with sparse matrices, as those of graphs of users and items."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal
from torch import Tensor, nn
from torch.fx.experimental import proxy_tensor

import rankhoist
from rankhoist.capture import sparse
from rankhoist.errors import ExportError, UnsupportedModelError, WeightsError

ROWS = {"user": torch.tensor([1, 4, 0, 3]), "item": torch.tensor([5, 2, 2, 1])}
N = 6


class Propagated(nn.Module):
    """Rows of what `use` makes of a sparse matrix `[N, N]` and vectors `[N, 3]`."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], layout: str = "coo", buffer: bool = True) -> None:
        super().__init__()
        self.use, self.vectors, self.top = use, nn.Embedding(N, 3), nn.Linear(3, 2)
        dense = torch.randn(N, N).where(torch.rand(N, N) < 0.4, 0.0)
        dense[2] = 0
        graph = dense.to_sparse_coo() if layout == "coo" else dense.to_sparse_csr()
        if buffer:
            self.register_buffer("graph", graph)
        else:
            self.graph = graph

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        x = self.use(self.graph, self.vectors.weight)
        return self.top(x[user] * self.vectors(item)).tanh()


def dropped(a: Tensor, x: Tensor) -> Tensor:
    values = F.dropout(a.coalesce().values(), 0.3, False)
    return torch.sparse_coo_tensor(a.coalesce().indices(), values, a.shape) @ x


USES: dict[str, Callable[[Any, Any], Any]] = {
    "matmul": lambda a, x: a @ x,
    "mm": lambda a, x: torch.mm(a, x) + a.mm(x),
    "sparse.mm": lambda a, x: torch.sparse.mm(a, torch.sparse.mm(a, x)),
    "spmm": torch.spmm,
    "vector": lambda a, x: torch.stack([torch.mv(a, x[:, 0]), a @ x[:, 1], x[:, 2]], 1),
    "sparse.addmm": lambda a, x: torch.sparse.addmm(x, a, x, beta=0.5, alpha=2.0),
    "transposed": lambda a, x: a.t() @ x + torch.sparse.mm(a.transpose(0, 1), x),
    "T": lambda a, x: a.T @ x,
    "right": lambda a, x: (x.T @ a).T,
    "dense": lambda a, x: a.to_dense() @ x + F.linear(x.T, a.to_dense()).T,
    "sum": lambda a, x: torch.sparse.sum(a, 1).to_dense()[:, None] * x,
    "scaled": lambda a, x: (2 * a) @ x - (a / 3) @ x,
    "moved": lambda a, x: a.to(x.device).double() @ x if x.dtype is torch.float64 else a.float() @ x,
    "by hand": lambda a, x: torch.zeros_like(x).index_add(
        0, a.indices()[0], a.values()[:, None] * x[a.indices()[1]]
    ),
    "as it is": lambda a, x: a._nnz() * torch.zeros_like(x).index_add(
        0, a._indices()[0], a._values()[:, None] * x[a._indices()[1]]
    ),
    "made in forward": dropped,
    "made twice": lambda a, x: torch.sparse_coo_tensor(
        torch.tensor([[4, 1, 4, 0], [1, 2, 1, 5]]), x[:4, 0], (N, N)
    ) @ x,
}  # fmt: skip
COMPRESSED = ("matmul", "mm", "sparse.mm", "spmm", "vector", "sparse.addmm", "dense", "made twice")  # what torch has
LAYOUTS = [("coo", True), ("coo", False), ("csr", True), ("csr", False)]


@pytest.mark.parametrize(
    "use, layout, buffer", [(u, k, b) for u in USES for k, b in LAYOUTS if k == "coo" or u in COMPRESSED]
)
def test_equal(use, layout, buffer):
    torch.manual_seed(0)
    model = Propagated(USES[use], layout, buffer).eval()
    hoisted = rankhoist.hoist(model, ROWS, context=["user"])
    user, item = torch.tensor([3]), torch.tensor([0, 5, 1, 2, 4])
    assert_equal(hoisted(user, item), model(user.expand(5), item))
    assert type(model) is Propagated and model.graph.layout is (
        torch.sparse_coo if layout == "coo" else torch.sparse_csr
    )
    assert [*model.state_dict()] == [*Propagated(USES[use], layout, buffer).state_dict()]


def test_rows_of_a_sparse_layer():
    """A layer whose weight is sparse: what rows are multiplied by is dense, and hoisted like any linear layer."""

    class Pruned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = torch.randn(4, 8).where(torch.rand(4, 8) < 0.5, 0.0)
            self.register_buffer("weight", weight.to_sparse_coo())

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return torch.sparse.mm(self.weight, torch.cat([user, item], 1).t()).t().sum(1)

    model = Pruned().double().eval()
    user, item = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    hoisted = rankhoist.hoist(model, (user, item), context=["user"])
    assert_equal(hoisted(user[:1], item), model(user[:1].expand(3, -1), item))
    total = hoisted.report().total()
    assert total.after.multiply_adds < total.before.multiply_adds / 2


def test_saved_verified_and_given_new_weights(tmp_path):
    model = Propagated(USES["sparse.mm"]).eval()
    hoisted = rankhoist.hoist(model, ROWS, context=["user"])
    assert rankhoist.verify(hoisted, model).passed
    hoisted.save(tmp_path / "model.rankhoist")
    loaded = rankhoist.load(tmp_path / "model.rankhoist")
    user, item = torch.tensor([1]), torch.tensor([0, 5, 1])
    assert_equal(loaded(user, item), hoisted(user, item))
    new = copy.deepcopy(model)
    new.graph = (new.graph * 3).coalesce()
    loaded.update_weights(new.state_dict())
    assert_equal(loaded(user, item), new(user.expand(3), item))
    new.graph = torch.eye(N).to_sparse_coo()
    with pytest.raises(WeightsError, match=r"graph__indices.*has shape \[2, 6\]"):
        loaded.update_weights(new.state_dict())


def test_threads_leave_torch_as_it_was():
    """Models are exported one after the other: what stands for functions of torch meanwhile is taken away again."""
    own = torch.sparse_coo_tensor, proxy_tensor._extract_tensor_metadata
    models = [Propagated(USES["made in forward"]).eval() for _ in range(3)]
    user, item = torch.tensor([3]), torch.tensor([0, 5, 1])
    with ThreadPoolExecutor(3) as threads:
        hoisted = list(threads.map(lambda m: rankhoist.hoist(m, ROWS, context=["user"]), models))
    assert (torch.sparse_coo_tensor, proxy_tensor._extract_tensor_metadata) == own
    for made, model in zip(hoisted, models, strict=True):
        assert_equal(made(user, item), model(user.expand(3), item))


def test_gradients():
    model = Propagated(USES["sparse.mm"])
    grouped = rankhoist.grouped(model, ROWS, context=["user"])
    user, item = torch.tensor([1]), torch.tensor([0, 5, 1])
    made = torch.autograd.grad(grouped(user, item).square().sum(), list(grouped.parameters()))
    assert_equal(made, torch.autograd.grad(model(user.expand(3), item).square().sum(), list(model.parameters())))


def refused(use: Callable[[Any, Any], Any], said: str) -> None:
    with pytest.raises((UnsupportedModelError, ExportError), match=said):
        rankhoist.hoist(Propagated(use).eval(), ROWS, context=["user"])


def test_refused(monkeypatch):
    refused(lambda a, x: torch.sparse.softmax(a, 1) @ x, "_sparse_softmax of a sparse matrix, of which no law is known")
    refused(lambda a, x: torch.sparse_coo_tensor([[1, 1], [2, 2]], [1.0, 2.0]) @ x, "no matrix of a given size")
    made = torch.tensor([[1, 1], [2, 2]]), torch.ones(2)
    refused(lambda a, x: torch.sparse_coo_tensor(*made, (N, N)).coalesce().values().sum() * x, "make it a buffer")
    monkeypatch.setattr(sparse, "LARGEST", 35)
    refused(lambda a, x: a.to_dense() @ x, r"all elements of a sparse matrix \[6, 6\]")


def test_a_sparse_parameter_is_refused():
    """New values would be those of a buffer, and not be trained."""
    model = Propagated(USES["matmul"], buffer=False).eval()
    graph = model.graph
    del model.graph
    model.graph = nn.Parameter(graph)
    with pytest.raises(UnsupportedModelError, match=r"sparse tensor, 'graph'.*make it a buffer"):
        rankhoist.hoist(model, ROWS, context=["user"])


def test_reached_by_no_attribute():
    """In a list, or in a graph that was exported before."""
    model = Propagated(USES["matmul"]).eval()
    exported = torch.export.export(model, tuple(ROWS.values()), dynamic_shapes=({0: torch.export.Dim("n")},) * 2)
    with pytest.raises(UnsupportedModelError, match="sparse tensor, 'graph': hoist the module itself"):
        rankhoist.hoist(exported, None, context=["user"])
    graphs = [model.graph]
    refused(lambda _, x: graphs[0] @ x, "sparse tensor, '.*': hoist the module itself, and make it a buffer")
