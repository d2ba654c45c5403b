"""Models as they come: inside wrappers, scripted, quantised, with arguments that are no tensors."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils import _pytree as pytree

import rankhoist
from rankhoist import hoist
from rankhoist.errors import CaptureError, ExportError, InputError, TrainingModeError, UnsupportedModelError


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 4), nn.Embedding(20, 4)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 1))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        scale = torch.tensor([0.5])  # a constant of the script is no weight
        return self.layers(torch.cat([self.user(user), self.item(item)], 1)).squeeze(1) * scale


ROWS = torch.randint(20, (4,)), torch.randint(20, (4,))
CONTEXT, CANDIDATES = torch.tensor([7]), torch.randint(20, (9,))


def wrapped(model: nn.Module, how: str) -> nn.Module:
    makers: dict[str, Any] = {
        "compiled": torch.compile,
        "data parallel": nn.DataParallel,
        "averaged": torch.optim.swa_utils.AveragedModel,
        "both": lambda m: nn.DataParallel(torch.compile(m)),
        "scripted": torch.jit.script,
        "traced": lambda m: torch.jit.trace(m, ROWS),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = makers[how](model)
    return made


@pytest.mark.parametrize("how", ["compiled", "data parallel", "averaged", "both", "scripted", "traced"])
def test_what_is_wrapped_is_hoisted_under_its_own_names(how: str):
    model = Ranker().eval()
    outer = wrapped(model, how).eval()
    hoisted = hoist(outer, ROWS, context=["user"])
    assert_equal(hoisted(CONTEXT, CANDIDATES), model(CONTEXT.expand(9), CANDIDATES), how)
    assert hoisted.state_dict().keys() == model.state_dict().keys()
    assert (
        hoisted.plan.cost.multiply_adds < hoist(model, ROWS, context=["user"], level="expand").plan.cost.multiply_adds
    )


class Scorer(Ranker):
    """Its scores are what `predict` makes of `forward`, for its author calls that."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.half = nn.Buffer(torch.tensor(0.25)), torch.tensor(0.5)

    def predict(self, user: torch.Tensor, item: torch.Tensor, add: bool = True) -> torch.Tensor:
        scores = torch.sigmoid(self(user, item)) * self.half
        return scores + self.shift if add else scores


def test_a_method_of_a_model_is_hoisted_verified_and_updated():
    model, other = Scorer().eval(), Scorer().eval()
    for args in ((), (False,)):
        hoisted = hoist(model.predict, (*ROWS, *args), context=["user"])
        assert_equal(hoisted(CONTEXT, CANDIDATES, *args), model.predict(CONTEXT.expand(9), CANDIDATES, *args))
        assert hoisted.state_dict().keys() == model.state_dict().keys()
        assert rankhoist.verify(hoisted, model.predict, candidates=(7,)).passed
        assert args or not rankhoist.verify(hoisted, model, candidates=(7,)).passed
        hoisted.update_weights(other.state_dict())
        assert_equal(hoisted(CONTEXT, CANDIDATES, *args), other.predict(CONTEXT.expand(9), CANDIDATES, *args))
    with pytest.raises(TrainingModeError, match=r"layers"):
        hoist(model.train().predict, ROWS, context=["user"])
    with pytest.raises(CaptureError, match="a module is trained, not a method of one"):
        rankhoist.grouped(model.predict, ROWS, context=["user"])


def test_what_a_method_keeps_is_noticed():
    class Counting(Ranker):
        calls = 0

        def predict(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self(user, item) * self.calls

    model = Counting().eval()
    with pytest.raises(UnsupportedModelError, match="two calls on the same rows differ, and it writes 'calls'"):
        hoist(model.predict, ROWS, context=["user"])
    assert model.calls == 0


@pytest.mark.parametrize("no_model", [Ranker, lambda user, item: user * item, None, torch.sigmoid])
def test_what_is_no_model_is_refused(no_model: Any):
    hoisted = hoist(Ranker().eval(), ROWS, context=["user"])
    calls = [hoist, rankhoist.grouped, lambda model, *args, **kwargs: rankhoist.verify(hoisted, model)]
    for call in calls:
        with pytest.raises(
            CaptureError, match=r"a model is a module, a method of one, .* not a (type|function|None|built)"
        ):
            call(no_model, ROWS, context=["user"])


def exported(model: nn.Module) -> nn.Module:
    rows = torch.export.Dim("rows")
    return torch.export.export(model, ROWS, dynamic_shapes=({0: rows}, {0: rows})).module()


def compiled_inside(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    model.layers = torch.compile(model.layers, backend="eager")
    model.item = torch.compile(model.item, backend="eager")  # which has no length
    return model


@pytest.mark.parametrize("how", [exported, compiled_inside])
def test_what_is_exported_or_compiled_inside_is_hoisted_and_verified(how):
    """The module of an exported program refuses `eval`, and a compiled one asks its model for its length."""
    model = Ranker().eval()
    outer = how(model)
    hoisted = hoist(outer, ROWS, context=["user"])
    assert_equal(hoisted(CONTEXT, CANDIDATES), model(CONTEXT.expand(9), CANDIDATES))
    assert rankhoist.verify(hoisted, outer, candidates=(1, 7), requests=(1,)).passed


def test_what_is_compiled_inside_and_in_training_mode_is_named():
    model = compiled_inside(Ranker().eval())
    model.layers.train()
    with pytest.raises(TrainingModeError, match=r"in training mode are layers._orig_mod.0, "):
        hoist(model, ROWS, context=["user"])


@pytest.mark.parametrize("how", ["compiled", "data parallel", "averaged", "both"])
def test_weights_of_a_wrapper_and_of_its_model_are_as_good(how: str):
    hoisted = hoist(wrapped(Ranker().eval(), how), ROWS, context=["user"])
    model = Ranker().eval()
    expected = model(CONTEXT.expand(9), CANDIDATES)
    for state in (wrapped(model, how).state_dict(), model.state_dict()):
        hoisted.update_weights(state)
        assert_equal(hoisted(CONTEXT, CANDIDATES), expected, how)


def test_a_script_that_cannot_be_converted_is_refused_by_name():
    class Odd(nn.Module):
        def forward(self, user: torch.Tensor, item: torch.Tensor) -> dict[str, torch.Tensor]:
            found: dict[str, torch.Tensor] = {}
            while len(found) < 2:
                found[str(len(found))] = user * item
            return found

    with pytest.raises(ExportError, match=r"Odd|torch.export refuses"):
        hoist(torch.jit.script(Odd().eval()), (torch.randn(4, 2), torch.randn(4, 2)), context=["user"])


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_is_told_what_is_true():
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(Ranker().eval()), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UnsupportedModelError, match=r"module 'layers.0' \(Linear\).*before it was quantised"):
        hoist(quantised, ROWS, context=["user"])


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_half_precision_is_not_told_that_its_inputs_are_quantised():
    packed = torch.ao.quantization.quantize_dynamic(copy.deepcopy(Ranker().eval()), {nn.Linear}, dtype=torch.float16)
    with pytest.raises(
        UnsupportedModelError, match=r"'layers.0' \(Linear\).* which torch.export does not take\. Hoist"
    ):
        hoist(packed, ROWS, context=["user"])


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_spread_over_processes_are_refused():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        by_layers, by_columns = Ranker().eval(), Ranker().eval()
        fully_shard(by_layers, mesh=mesh)
        parallelize_module(by_columns, mesh, {"layers.3": ColwiseParallel()})
        for model, name in ((by_layers, r"'' \(FSDPRanker\)"), (by_columns, r"'layers.3' \(Linear\)")):
            with pytest.raises(
                UnsupportedModelError, match=rf"module {name} has weights that are spread over processes"
            ):
                hoist(model, ROWS, context=["user"])
    finally:
        distributed.destroy_process_group()


class Sum(torch.Tensor):
    """A weight that is made of two, and has no memory of its own, as quantised ones of torchao."""

    @staticmethod
    def __new__(cls, high: torch.Tensor, low: torch.Tensor) -> Sum:
        return torch.Tensor._make_wrapper_subclass(cls, high.shape, dtype=high.dtype)

    def __init__(self, high: torch.Tensor, low: torch.Tensor) -> None:
        self.high, self.low = high, low

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["high", "low"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, torch.Tensor], meta: None, size: Any, stride: Any) -> Sum:
        return Sum(parts["high"], parts["low"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten._to_copy.default):
            return Sum(*(func(x, **(kwargs or {})) for x in (args[0].high, args[0].low)))
        return func(*pytree.tree_map_only(Sum, lambda x: x.high + x.low, args), **(kwargs or {}))


def test_weights_that_are_made_of_others_are_hoisted_verified_and_updated():
    def of_parts() -> Ranker:
        model = Ranker().eval()
        for layer in (model.layers[0], model.layers[3]):
            whole = layer.weight.detach()
            layer.weight = nn.Parameter(Sum(whole.round(decimals=1), whole - whole.round(decimals=1)))
        return model

    model, newer = of_parts(), of_parts()
    hoisted = hoist(model, ROWS, context=["user"])
    assert rankhoist.verify(hoisted, model, candidates=[7]).passed
    hoisted.update_weights(newer.state_dict())
    assert_equal(hoisted(CONTEXT, CANDIDATES), newer(CONTEXT.expand(9), CANDIDATES))


def test_weights_that_were_made_for_inference_are_hoisted_and_stay_what_they_are():
    with torch.inference_mode():
        model = Ranker().eval()
        rows = tuple(x.clone() for x in ROWS)
    weights = dict(model.named_parameters())
    hoisted = hoist(model, rows, context=["user"])
    with torch.no_grad():
        assert_equal(hoisted(CONTEXT, CANDIDATES), model(CONTEXT.expand(9), CANDIDATES))
    assert rankhoist.verify(hoisted, model, candidates=[7]).passed
    assert all(x is weights[n] and x.is_inference() for n, x in model.named_parameters())


def test_only_a_model_in_training_mode_is_asked_to_be_in_eval_mode():
    model = Ranker().eval()
    model.layers[2].train()
    with pytest.raises(TrainingModeError, match=r"call model.eval\(\) first: in training mode are layers.2"):
        hoist(model, ROWS, context=["user"])


def test_lightning_modules_are_modules():
    lightning = pytest.importorskip("lightning", reason="needs lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Ranker()

        def forward(self, user, item):
            return self.model(user, item)

    model = Module().eval()
    hoisted = hoist(model, ROWS, context=["user"])
    assert_equal(hoisted(CONTEXT, CANDIDATES), model(CONTEXT.expand(9), CANDIDATES))


def test_one_tensor_given_twice_is_two_inputs():
    model = Ranker().eval()
    hoisted = hoist(model, (ROWS[0], ROWS[0]), context=["user"])
    assert_equal(hoisted(CONTEXT, CANDIDATES), model(CONTEXT.expand(9), CANDIDATES))


def test_features_by_keyword():
    class Features(Ranker):
        def forward(self, scale: float = 1.0, **features: torch.Tensor) -> torch.Tensor:
            return super().forward(**features) * scale

    model = Features().eval()
    hoisted = hoist(model, {"item": ROWS[1], "user": ROWS[0]}, context=["user"])
    expected = model(user=CONTEXT.expand(9), item=CANDIDATES)
    assert_equal(hoisted(user=CONTEXT, item=CANDIDATES), expected)
    assert "forward" not in vars(model)
    with pytest.raises(InputError, match=r"input 'user.id' is given by keyword and has no name of a Python argument"):
        hoist(model, {"user.id": ROWS[0], "item": ROWS[1]}, context=["user.id"])


# -- arguments that are no tensors


class Tempered(nn.Module):
    def forward(self, user, item, temperature, bias=None, sign=True, mode="sum"):
        score = user * item if mode == "product" else user + item
        score = score / temperature if sign else -score / temperature
        return score if bias is None else score + bias


USER, ITEMS = torch.randn(1, 3), torch.randn(5, 3)
EXAMPLE = torch.randn(4, 3), torch.randn(4, 3)


@pytest.mark.parametrize("rest", [(0.5,), (2,), (0.5, None, False), (0.5, 1.5, True, "product")])
def test_what_is_no_tensor_is_a_constant(rest: tuple[Any, ...], tmp_path: Path):
    model = Tempered().eval()
    hoisted = hoist(model, (*EXAMPLE, *rest), context=["user"])
    expected = model(USER.expand(5, 3), ITEMS, *rest)
    assert_equal(hoisted(USER, ITEMS, *rest), expected)
    assert_equal(
        hoisted(item=ITEMS, user=USER, **dict(zip(("temperature", "bias", "sign", "mode"), rest, strict=False))),
        expected,
    )
    assert rankhoist.verify(hoisted, model, seed=1).passed
    hoisted.save(tmp_path / "model.rankhoist")
    again = rankhoist.load(tmp_path / "model.rankhoist")
    assert_equal(again(USER, ITEMS, *rest), expected)
    with pytest.raises(InputError, match=r"argument 'temperature' is 0.25; the model was hoisted for"):
        again(USER, ITEMS, 0.25, *rest[1:])


def test_another_constant_is_refused_also_where_the_example_left_it_out():
    hoisted = hoist(Tempered().eval(), (*EXAMPLE, 0.5), context=["user"])
    for rest in ((0.7,), (0.5, 1.0), (0.5, None, False), (0.5, None, True, "product"), (0.5, ITEMS)):
        with pytest.raises(InputError, match="as a constant"):
            hoisted(USER, ITEMS, *rest)
    flagged = hoist(Tempered().eval(), (*EXAMPLE, 0.5, None, False), context=["user"])
    with pytest.raises(InputError, match="argument 'sign' is True; the model was hoisted for False"):
        flagged(USER, ITEMS, 0.5)


def test_what_the_model_was_not_hoisted_with_is_refused():
    class Weighted(nn.Module):
        def forward(self, **features):
            score = (features["user"] * features["item"]).sum(1)
            return score * features["weight"] if "weight" in features else score

    hoisted = hoist(Weighted().eval(), dict(zip(("user", "item"), EXAMPLE, strict=True)), context=["user"])
    state, weight = hoisted.prepare({"user": USER}), torch.ones(5)
    with pytest.raises(InputError, match=r"^not inputs: weight; the inputs are user, item$"):
        hoisted(user=USER, item=ITEMS, weight=weight)
    with pytest.raises(InputError, match=r"^not candidate inputs: weight; the candidate inputs are item$"):
        hoisted.score(state, {"item": ITEMS, "weight": weight})
    whole = {"user": USER, "item": ITEMS}  # a batch of both sides is no mistake
    assert torch.equal(hoisted.score(hoisted.prepare(whole), whole), hoisted(**whole))


def test_an_example_of_constants_alone_is_refused():
    with pytest.raises(InputError, match="holds no tensor"):
        hoist(Tempered().eval(), (1.0, 2.0, 0.5), context=["user"])


# -- what torch says


def test_walls_of_text_are_kept_out_of_the_terminal(capfd: pytest.CaptureFixture[str]):
    class Branch(nn.Module):
        def forward(self, user, item):
            return user * item if (user > 0).all() else item

    with pytest.raises(ExportError, match=r"module '' \(Branch\).*depends on the values"):
        hoist(Branch().eval(), EXAMPLE, context=["user"])
    said = capfd.readouterr()
    assert said.out + said.err == ""
