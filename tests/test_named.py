"""Inputs and results with names: named tuples, dataclasses, and what models of transformers return."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import rankhoist
from rankhoist.errors import ArtifactError
from rankhoist.runtime.outputs import made_up_outputs
from rankhoist.runtime.structure_json import as_structure


class Tasks(NamedTuple):
    click: Tensor
    buy: Tensor


@dataclasses.dataclass
class Inside:
    hidden: Tensor
    attentions: Tensor | None = None


@dataclasses.dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None
    inside: Inside | None = None


def output_of_transformers(x: Tensor) -> Any:
    modeling_outputs = pytest.importorskip("transformers.modeling_outputs")
    return modeling_outputs.SequenceClassifierOutput(logits=x, hidden_states=(x, 2 * x))


RESULTS = {
    "named tuple": (lambda x: Tasks(x, 2 * x), ["click", "buy"]),
    "nested": (lambda x: {"tasks": Tasks(x, -x), "all": [x]}, ["tasks.click", "tasks.buy", "all.0"]),
    "dataclass": (lambda x: Output(x), ["logits"]),
    "dataclass of another": (lambda x: Output(x, inside=Inside(x.exp())), ["logits", "inside.hidden"]),
    "transformers": (output_of_transformers, ["logits", "hidden_states.0", "hidden_states.1"]),
}


class Model(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result, self.layer = result, nn.Linear(5, 3)

    def forward(self, user: Tensor, item: Tensor) -> Any:
        return self.result(self.layer(torch.cat([user, item], 1)))


@pytest.mark.parametrize("name", RESULTS)
def test_results_have_their_names(name, tmp_path):
    result, names = RESULTS[name]
    model = Model(result).eval()
    user, items = torch.randn(1, 3), torch.randn(4, 2)
    hoisted = rankhoist.hoist(model, (user.expand(4, -1), items), context=["user"])
    made, truth = hoisted(user, items), model(user.expand(4, -1), items)
    assert type(made) is type(truth)
    assert_equal(pytree.tree_leaves(made), pytree.tree_leaves(truth))
    hoisted.save(tmp_path / "model.rankhoist")
    loaded = rankhoist.load(tmp_path / "model.rankhoist")
    assert_equal(pytree.tree_leaves(loaded(user, items)), pytree.tree_leaves(truth))
    assert rankhoist.verify(hoisted, model).passed and rankhoist.verify(loaded, model).passed
    assert [x.name for x in made_up_outputs(hoisted, 2)] == [x.name for x in made_up_outputs(loaded, 2)] == names


def test_loaded_results_are_read_by_their_names(tmp_path):
    user, items = torch.randn(1, 3), torch.randn(4, 2)

    def loaded(name: str) -> Any:
        hoisted = rankhoist.hoist(Model(RESULTS[name][0]).eval(), (user.expand(4, -1), items), context=["user"])
        hoisted.save(tmp_path / "model.rankhoist")
        return rankhoist.load(tmp_path / "model.rankhoist")(user, items)

    click, buy = pair = loaded("named tuple")
    assert pair.click is click and pair._asdict() == {"click": click, "buy": buy} and "click=tensor" in repr(pair)
    output = loaded("dataclass of another")
    assert output["logits"] is output.logits and output.loss is None and output.inside.attentions is None
    with pytest.raises(AttributeError, match="no attribute"):
        output.scores  # noqa: B018


@pytest.mark.parametrize(
    "data",
    [
        {"namedtuple": [["__class__", "*"]]},
        {"namedtuple": [["a", "*"], ["a", "*"]]},
        {"namedtuple": ["a"]},
        {"fields": [["a b", "*"]]},
        {"fields": [[1, "*"]]},
        {"fields": {"a": "*"}},
        {"Output": [["logits", "*"]]},
    ],
)
def test_names_in_a_file_are_checked(data):
    with pytest.raises(ArtifactError):
        as_structure(data)


class Unnamed:
    def __init__(self, *scores: Tensor) -> None:
        self.scores = scores


pytree.register_pytree_node(Unnamed, lambda x: ([*x.scores], None), lambda leaves, _: Unnamed(*leaves))


def test_a_file_holds_no_container_without_names(tmp_path):
    user, items = torch.randn(1, 3), torch.randn(4, 2)
    hoisted = rankhoist.hoist(Model(lambda x: Unnamed(x, 2 * x)).eval(), (user.expand(4, -1), items), context=["user"])
    assert rankhoist.verify(hoisted, Model(lambda x: Unnamed(x, 2 * x)).eval()).passed is False  # of other weights
    with pytest.raises(ArtifactError, match="cannot be saved: the model returns Unnamed"):
        hoisted.save(tmp_path / "model.rankhoist")
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass
class Batch:
    user: Tensor
    items: Tensor


torch.export.register_dataclass(Batch)


class Batched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, batch: Any, shift: Tasks) -> Tensor:
        return self.layer(torch.cat([batch.user, batch.items], 1)).squeeze(1) + shift.click - shift.buy


def test_a_loaded_model_takes_containers_by_their_names(tmp_path):
    """As they were, or dicts in their place."""
    model = Batched().eval()
    user, items, click, buy = torch.randn(1, 3), torch.randn(4, 2), torch.randn(1), torch.randn(4)
    rows = Batch(user.expand(4, -1), items), Tasks(click.expand(4), buy)
    hoisted = rankhoist.hoist(model, rows, context=["batch.user", "shift.click"])
    hoisted.save(tmp_path / "model.rankhoist")
    loaded = rankhoist.load(tmp_path / "model.rankhoist")
    for own in (hoisted, loaded):
        assert_equal(own(Batch(user, items), Tasks(click, buy)), model(*rows))
        assert_equal(own({"user": user, "items": items}, {"click": click, "buy": buy}), model(*rows))
        assert rankhoist.verify(own, model).passed
