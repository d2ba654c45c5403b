"""Weights of products, laid out as they are multiplied by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import rankhoist
from rankhoist.compiler.emit import Stage
from rankhoist.compiler.graph.node import aten
from rankhoist.runtime import laid_out

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="only MKL is given weights laid out")


class Tied(nn.Module):
    """A layer of its own, and a table that is looked up and multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(6, 8), nn.Linear(8, 4)
        self.own = nn.Linear(5, 8)

    def forward(self, user: Tensor, item: Tensor, x: Tensor) -> Tensor:
        row = self.table(item) + self.own(x)
        return torch.cat([row @ self.table.weight.t(), self.layer(torch.relu(row)) * user], 1)


@pytest.fixture(scope="module")
def tied() -> tuple[nn.Module, rankhoist.HoistedModel, list[Tensor]]:
    torch.manual_seed(0)
    inputs = [torch.randn(3, 1), torch.tensor([0, 5, 2]), torch.randn(3, 5)]
    model = Tied().eval()
    return model, rankhoist.hoist(model, tuple(inputs), context=["user"]), inputs


def _stage(make: Callable[[fx.Graph, fx.Node, fx.Node], fx.Node]) -> Stage:
    graph = fx.Graph()
    x, weight = (graph.placeholder(name) for name in ("x", "weight"))
    graph.output((make(graph, weight, x),))
    return Stage.of(graph, "Request", ["weight"], [])


def weights_of(model: rankhoist.HoistedModel) -> list[Tensor]:
    return [a for _, of_candidate in model.weights.arguments for a in of_candidate if isinstance(a, Tensor)]


def test_what_is_only_multiplied_by_is_laid_out_once(tied):
    model, hoisted, _ = tied
    own = {id(w): w for w in weights_of(hoisted)}.values()
    for weight in (model.layer.weight, model.own.weight):
        (turned,) = [w for w in own if w.shape == weight.shape and torch.equal(w, weight)]
        assert turned.stride() == (1, len(weight)), "one copy for all plans"
    assert any(w.data_ptr() == model.table.weight.data_ptr() for w in own), "rows are looked up in it"


@pytest.mark.parametrize("rows, turned", [(laid_out.MANY - 1, False), (laid_out.MANY, True)])
def test_where_few_rows_meet_it_it_stays_as_it_was_trained(rows, turned):
    weight = torch.randn(1024, 8)
    stage = _stage(lambda graph, w, x: graph.call_function(aten.linear.default, (x, w)))
    (made,) = laid_out.LaidOut().of(stage, [weight], rows)
    assert torch.equal(made, weight) and (made is not weight) == turned
    assert made.stride() == ((1, 1024 + 16) if turned else (8, 1)), "columns do not begin pages apart"


def test_what_meets_rows_element_by_element_is_laid_out_in_rows():
    weight = torch.randn(6, 4).t()
    stage = _stage(lambda graph, w, x: graph.call_function(aten.mul.Tensor, (w, w)))
    (made,) = laid_out.LaidOut().of(stage, [weight])
    assert torch.equal(made, weight) and made.is_contiguous()


def test_scores_are_those_of_the_original_also_after_new_weights(tied):
    model, hoisted, (user, item, x) = tied
    expected = model(user[:1].expand(3, 1), item, x)
    torch.testing.assert_close(hoisted(user[:1], item, x), expected)
    new = {name: w + 1 for name, w in model.state_dict().items()}
    hoisted.update_weights(new)
    again = Tied().eval()
    again.load_state_dict(new)
    torch.testing.assert_close(hoisted(user[:1], item, x), again(user[:1].expand(3, 1), item, x))
    hoisted.update_weights(model.state_dict())


def test_no_more_than_there_is_room_for(tied, monkeypatch):
    model, _, inputs = tied
    monkeypatch.setattr(laid_out, "LIMIT", 8 * 5 * 4)
    hoisted = rankhoist.hoist(model, tuple(inputs), context=["user"])
    turned = {id(w): w for w in weights_of(hoisted) if w.dim() == 2 and w.stride() == (1, len(w))}.values()
    copied = [w for w in turned if w.untyped_storage().data_ptr() != model.table.weight.untyped_storage().data_ptr()]
    assert sum(w.nbytes for w in copied) <= laid_out.LIMIT
    assert any(w.data_ptr() == model.layer.weight.data_ptr() for w in weights_of(hoisted))
