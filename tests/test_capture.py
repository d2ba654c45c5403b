"""Capture: names, context by glob and by columns, every clear error, and models in all the forms that are accepted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import nn

import rankhoist
from rankhoist import Split, hoist
from rankhoist.capture import capture
from rankhoist.capture.checks import check_states
from rankhoist.capture.recurrent import of_any_length
from rankhoist.errors import (
    CaptureError,
    ContextError,
    ExportError,
    InputError,
    TrainingModeError,
    UnsupportedModelError,
    UnusedInputWarning,
)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.offsets = torch.tensor([2.0, 3.0, 4.0])  # a plain attribute: no parameter, no buffer

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([user, item], 1)) * self.offsets


class Nested(nn.Module):
    def forward(self, batch: dict, extra: tuple) -> dict:
        (scale,) = extra
        return {"score": batch["user"]["age"] * batch["item"]["price"], "pair": (scale, batch["user"]["age"] + scale)}


class Packed(nn.Module):
    """Columns of both kinds, interleaved: id, dense, id, dense."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.top = nn.Linear(10, 1)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        parts = [self.table(X[:, 0:1].long()).squeeze(), X[:, 1:2], self.table(X[:, 2:3].long()).flatten(1), X[:, 3:4]]
        return torch.sigmoid(self.top(torch.cat([parts[0].view(-1, 4), *parts[1:]], 1))).squeeze()


def rows(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3), torch.randn(n, 2)


def test_positional_and_keyword_inputs():
    model = TwoInputs().eval()
    user, item = rows()
    expected = model(user[:1].expand(4, -1), item)
    assert_equal(hoist(model, (user, item), context=["user"])(user[:1], item), expected)
    assert_equal(hoist(model, {"item": item, "user": user}, context="us*")(item=item, user=user[:1]), expected)


def test_one_row_example_is_enough():
    model = TwoInputs().eval()
    user, item = rows()
    hoisted = hoist(model, (user[:1], item[:1]), context=["user"])
    assert_equal(hoisted(user[:1], item), model(user[:1].expand(4, -1), item))


def test_nested_containers_are_named_by_path():
    model = Nested().eval()
    batch = {"user": {"age": torch.randn(4)}, "item": {"price": torch.randn(4)}}
    extra = (torch.randn(4),)
    hoisted = hoist(model, (batch, extra), context=["user.*"])
    assert [s.name for s in hoisted.program.inputs.values()] == ["user.age", "item.price", "0"]
    one = {"user": {"age": batch["user"]["age"][:1]}, "item": batch["item"]}
    batch["user"]["age"] = batch["user"]["age"][:1].expand(4)
    assert_equal(hoisted(one, extra), model(batch, extra))


def test_same_key_in_two_arguments_is_qualified():
    class Two(nn.Module):
        def forward(self, user: dict, item: dict) -> torch.Tensor:
            return user["id"] * item["id"]

    program = capture(Two().eval(), ({"id": torch.randn(3)}, {"id": torch.randn(3)}), ["user.*"])
    assert {s.name: s.role for s in program.inputs.values()} == {"user.id": "context", "item.id": "candidate"}


class Sides(nn.Module):
    def forward(self, user: dict, item: dict) -> torch.Tensor:
        return (user["age"] + user["dense"].sum(1)) * item["price"] + item["dense"].sum(1)


@pytest.mark.parametrize("context", ["user", ["user.*"], ["user.age", "user.dense"], ["age", "us*.dense"]])
def test_a_container_is_context_by_its_own_name(context):
    user = {"age": torch.randn(4), "dense": torch.randn(4, 2)}
    item = {"price": torch.randn(4), "dense": torch.randn(4, 3)}
    hoisted = hoist(Sides().eval(), (user, item), context=context)
    assert [s.name for s in hoisted.program.inputs.values() if s.role == "context"] == ["age", "user.dense"]
    one = {name: x[:1] for name, x in user.items()}
    expected = Sides()({name: x.expand(4, *x.shape[1:]) for name, x in one.items()}, item)
    assert_equal(hoisted(one, item), expected)
    for given in ({"user": one}, {"age": one["age"], "user.dense": one["dense"]}):
        assert_equal(hoisted.score(hoisted.prepare(given), {"item": item}), expected)


def test_a_container_inside_of_one_is_context_by_its_name():
    batch = {"user": {"age": torch.randn(4)}, "item": {"price": torch.randn(4)}}
    program = capture(Nested().eval(), (batch, (torch.randn(4),)), ["user"])
    assert [s.name for s in program.inputs.values() if s.role == "context"] == ["user.age"]


@pytest.mark.parametrize("context", ["us", "age.*", "user.price"])
def test_a_name_of_no_container_is_an_error(context):
    user, item = (
        {"age": torch.randn(4), "dense": torch.randn(4, 2)},
        {"price": torch.randn(4), "dense": torch.randn(4, 3)},
    )
    with pytest.raises(ContextError, match=r"matches no input; the inputs are age, user\.dense"):
        hoist(Sides().eval(), (user, item), context=context)


def test_dict_of_features_as_example_of_a_one_argument_model():
    class Features(nn.Module):
        def forward(self, features: dict) -> torch.Tensor:
            return features["u"] * features["i"]

    u, i = torch.randn(3), torch.randn(3)
    hoisted = hoist(Features().eval(), {"u": u, "i": i}, context=["u"])
    assert_equal(hoisted({"u": u[:1], "i": i}), u[:1] * i)
    assert_equal(hoisted({"i": i, "u": u[:1]}), u[:1] * i)


@pytest.mark.parametrize("columns", [[0, 3], [0, 1, 2], slice(1, None), range(2)])
def test_packed_columns_of_both_kinds(columns):
    model = Packed().eval()
    X = torch.cat(
        [
            torch.randint(0, 20, (6, 1)).float(),
            torch.randn(6, 1),
            torch.randint(0, 20, (6, 1)).float(),
            torch.randn(6, 1),
        ],
        1,
    )
    chosen = list(range(4))[columns] if isinstance(columns, slice) else list(columns)
    others = [c for c in range(4) if c not in chosen]
    full = X.clone()
    full[:, chosen] = X[:1, chosen]
    expected = model(full)
    for level in ("expand", "linear", "full"):
        hoisted = hoist(model, (X,), context={"X": columns}, level=level)
        assert_equal(hoisted(Split(context=X[:1, chosen], candidate=X[:, others])), expected)
        one = hoisted(Split(context=X[:1, chosen], candidate=X[:1, others]))
        assert one.shape == (1,), "one candidate keeps its axis, although the model squeezes"
        state = hoisted.prepare({"X": X[:1, chosen]})
        assert_equal(hoisted.score(state, {"X": X[:, others]}), expected)


def test_exported_program_and_archive(tmp_path):
    model = TwoInputs().eval()
    user, item = rows()
    dim = torch.export.Dim("b", min=2, max=1000)
    exported = torch.export.export(model, (user, item), dynamic_shapes={"user": {0: dim}, "item": {0: dim}})
    expected = model(user[:1].expand(4, -1), item)
    assert_equal(hoist(exported, None, context=["user"])(user[:1], item), expected)
    torch.export.save(exported, tmp_path / "model.pt2")
    hoisted = hoist(tmp_path / "model.pt2", None, context=["user"])
    assert_equal(hoisted(user[:1], item=item), expected)


def test_archive_errors(tmp_path):
    with pytest.raises(CaptureError, match="no such file"):
        hoist(tmp_path / "missing.pt2", None, context=["user"])
    (tmp_path / "bad.pt2").write_bytes(b"not an archive")
    with pytest.raises(CaptureError, match="not a readable"):
        hoist(tmp_path / "bad.pt2", None, context=["user"])


def test_static_rows_are_refused():
    exported = torch.export.export(TwoInputs().eval(), rows())
    with pytest.raises(CaptureError, match="symbolic row count"):
        hoist(exported, None, context=["user"])


def test_training_mode_names_the_module():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    with pytest.raises(TrainingModeError, match="in training mode are 0, 1"):
        hoist(model, (torch.randn(3, 2),), context=["input"])


def test_forgotten_flag_of_a_wrapper_is_no_error_but_active_dropout_is():
    class Wrapper(nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.inner, self.p = TwoInputs().eval(), p

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(self.inner(user, item), self.p, self.training)

    with pytest.raises(TrainingModeError, match=r"dropout.*training=self.training"):
        hoist(Wrapper(0.5), rows(), context=["user"])
    assert hoist(Wrapper(0.0), rows(), context=["user"]) is not None


def test_attention_that_drops_is_an_error():
    class Attends(nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.p = p

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(
                item[:, None], user[:, None, :2], item[:, None], None, self.p
            )

    with pytest.raises(TrainingModeError, match=r"attention.*dropout_p=p if self.training else 0.0"):
        hoist(Attends(0.5).eval(), rows(), context=["user"])
    assert hoist(Attends(0.0).eval(), rows(), context=["user"]) is not None


def test_statistics_of_a_call_are_an_error():
    class Norms(nn.Module):
        def __init__(self, tracked: bool) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(5, track_running_stats=tracked)

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return self.norm(torch.cat([user, item], 1))

    with pytest.raises(TrainingModeError, match=r"in norm takes the statistics.*track_running_stats=True"):
        hoist(Norms(tracked=False).eval(), rows(), context=["user"])
    assert hoist(Norms(tracked=True).eval(), rows(), context=["user"]) is not None


def test_different_row_counts():
    with pytest.raises(InputError, match=r"different row counts \(user: 4, item: 5\)"):
        hoist(TwoInputs().eval(), (torch.randn(4, 3), torch.randn(5, 2)), context=["user"])


def test_example_that_is_no_example():
    model = TwoInputs().eval()
    with pytest.raises(InputError, match="signature"):
        hoist(model, (torch.randn(4, 3),), context=["user"])
    with pytest.raises(InputError, match="example is NoneType"):
        hoist(model, None, context=["user"])
    with pytest.raises(InputError, match="'item' is object"):
        hoist(model, (torch.randn(4, 3), object()), context=["user"])
    with pytest.raises(InputError, match=r"fails on the example: .*no tensor is a constant of the model: item = 3"):
        hoist(model, (torch.randn(4, 3), 3), context=["user"])
    with pytest.raises(InputError, match="scalar"):
        hoist(model, (torch.randn(4, 3), torch.tensor(1.0)), context=["user"])
    with pytest.raises(InputError, match="no rows"):
        hoist(model, (torch.randn(0, 3), torch.randn(0, 2)), context=["user"])


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (["usr"], "matches no input; the inputs are user, item"),
        (["user", "page_*"], "'page_\\*' matches no input"),
        (["*"], "no candidate input"),
        ({"user": [0, 7]}, r"columns \[7\] of input 'user' are outside 0..2"),
        ({"user": [0, 0]}, "listed twice"),
        ({"user": [2, 0]}, "'user' are listed in another order than that of the input"),
        ({"user": slice(None, None, -2)}, "listed in another order"),
        ([3], "names are strings"),
    ],
)
def test_context_errors(context, message):
    with pytest.raises(ContextError, match=message):
        hoist(TwoInputs().eval(), rows(), context=context)


def test_columns_in_a_set_have_no_order():
    hoisted = hoist(TwoInputs().eval(), rows(), context={"user": {2, 0}})
    assert hoisted.interface.inputs["user"].columns == (0, 2)


def test_columns_of_an_input_without_columns():
    class Scale(nn.Module):
        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return user * item

    with pytest.raises(ContextError, match=r"'user' has shape \[rows\]; columns need"):
        capture(Scale().eval(), (torch.randn(4), torch.randn(4)), {"user": [0]})


def test_context_that_the_model_never_reads_warns():
    class Ignores(nn.Module):
        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return item * 2

    with pytest.warns(UnusedInputWarning, match="'user' is never read"):
        hoisted = hoist(Ignores().eval(), rows(), context=["user"])
    assert_equal(hoisted(torch.randn(1, 3), torch.ones(4, 2)), torch.full((4, 2), 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusedInputWarning)
        hoist(TwoInputs().eval(), rows(), context=["user"])


def test_random_numbers_are_refused_by_module():
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.randn(x.shape[0], 3)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise = Noise()

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return self.noise(user) * item[:, :1]

    with pytest.raises(UnsupportedModelError, match="in noise draws random numbers"):
        hoist(Model().eval(), rows(), context=["user"])


def test_a_generator_is_refused():
    class Seeded(nn.Module):
        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return (user + torch.randn(3, generator=torch.Generator().manual_seed(0))) * item[:, :1]

    with pytest.raises(UnsupportedModelError, match=r"a Generator, .* draws random numbers"):
        hoist(Seeded().eval(), rows(), context=["user"])


def test_control_flow_on_data_is_refused_by_module():
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = Branch()

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return self.branch(user)[:, :2] * item

    with pytest.raises(ExportError, match=r"module 'branch' \(Branch\).*depends on the values.*submodule"):
        hoist(Model().eval(), rows(), context=["user"])


class Counted(nn.Module):
    """Reads the number of rows as Python does, in a submodule."""

    def __init__(self, count: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.count, self.first = count, nn.Parameter(torch.randn(3))
        self.linear, self.scale = nn.Linear(3, 3), TwoInputs()

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        first = self.first.view(1, -1).expand(self.count(user), 1, -1)
        return self.linear(torch.cat([first, user[:, None]], 1)).sum((1, 2))[:, None] + self.scale(user, item)


@pytest.mark.parametrize("count", [len, lambda x: int(x.shape[0]), lambda x: x.shape[0]], ids=["len", "int", "shape"])
def test_the_number_of_rows_may_be_a_python_number(count):
    model = Counted(count).eval()
    hoisted = hoist(model, rows(), context=["user"])
    user, item = rows(7)
    assert_equal(hoisted(user[:1], item), model(user[:1].expand(7, -1), item))
    assert "linear" in {o.module for o in hoisted.report().operators}
    assert set(hoisted.interface.state) == set(model.state_dict())


def test_a_loop_over_rows_is_refused():
    class Loop(nn.Module):
        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return torch.stack([user[i, :2] * item[i] for i in range(len(user))])

    with pytest.raises(ExportError, match=r"module '' \(Loop\): it fixes the number of rows"):
        hoist(Loop().eval(), rows(), context=["user"])


def test_state_kept_in_buffers_is_refused():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return user[:, :2] * item + self.calls

    with pytest.raises(UnsupportedModelError, match="buffer 'calls'"):
        hoist(Counter().eval(), rows(), context=["user"])


def test_unknown_level():
    with pytest.raises(CaptureError, match="unknown level 'best'; levels are expand, lookup"):
        hoist(TwoInputs().eval(), rows(), context=["user"], level="best")


def test_in_place_operators_and_weights_shared_twice():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.tied = self.linear

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            h = self.linear(user)
            h += 1
            h[:, 0] = 0
            h = torch.relu_(self.tied(h))
            return h[:, :2].mul_(item)

    model = InPlace().eval()
    user, item = rows()
    for level in ("expand", "request", "full"):
        hoisted = hoist(model, (user, item), context=["user"], level=level)
        assert_equal(hoisted(user[:1], item), model(user[:1].expand(4, -1), item))


def test_packed_input_needs_its_two_parts():
    model = Packed().eval()
    X = torch.rand(4, 4)
    hoisted = hoist(model, (X,), context={"X": [0]})
    with pytest.raises(InputError, match=r"Split\(context=\[R, 1\], candidate=\[N, 3\]\)"):
        hoisted(X)
    with pytest.raises(InputError, match=r"candidate input 'X' has shape \[4, 4\], expected \[rows, 3\]"):
        hoisted(Split(context=X[:1, :1], candidate=X))


def test_public_names():
    assert set(rankhoist.__all__) <= set(dir(rankhoist))


def test_a_part_named_like_an_attribute_of_graph_modules_is_refused_with_advice():
    """See findings/export_submodules_named_like_graphs.sh; one floor down, the name does no harm."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.meta = nn.Sequential(nn.Linear(5, 3))

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.meta(torch.cat([user, item], 1))
            return made.reshape(-1, 3)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.meta = nn.Parameter(torch.ones(5))

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return (torch.cat([user, item], 1) @ self.meta).reshape(-1)

    class Plain(Scaled):
        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return torch.cat([user, item], 1) @ self.meta

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.model(user, item)
            return made

    rows = (torch.randn(4, 3), torch.randn(4, 2))
    told = "a part named 'meta': rename it, or put the model inside another module"
    with pytest.raises(ExportError, match=told):
        capture(Model().eval(), rows, ["user"])
    with pytest.raises(ExportError, match=told):
        capture(Scaled().eval(), rows, ["user"])
    for taken in (Outside(), Plain()):  # nothing is traced again of what is functional
        assert capture(taken.eval(), rows, ["user"]).inputs.keys() == {"user", "item"}


class Last(nn.Module):
    """The last state of an LSTM over the context."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.LSTM(4, 3, batch_first=True)

    def forward(self, context: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        _, (state, _) = self.steps(context)
        return state[-1] + candidate


def test_states_with_an_axis_too_many_are_refused():
    given = torch.randn(3, 5, 4), torch.randn(3, 3)
    rows = {0: torch.export.Dim("rows", min=2)}
    with of_any_length():  # as a newer torch says
        exported = torch.export.export(Last().eval(), given, dynamic_shapes=(rows, rows)).run_decompositions({})
    check_states(exported.graph)
    lstm = next(n for n in exported.graph.nodes if n.target is torch.ops.aten.lstm.input)
    steps, *states = lstm.meta["val"]
    lstm.meta["val"] = [steps, *(s.unsqueeze(0) for s in states)]  # as torch 2.11 says
    with pytest.raises(UnsupportedModelError, match="last states of an LSTM with an axis too many"):
        check_states(exported.graph)
