"""Models as their authors write them: dataclasses, hooks, weights that are not there yet, lines that do not export."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_equal, hoisted_at
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist import hoist
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.errors import ExportError, InputError, UnsupportedModelError

WIDTH = 3


@dataclass
class Batch:
    user: Tensor
    item: Tensor
    other: Tensor | None = None


@dataclass
class Plain:
    user: Tensor
    item: Tensor


class Pair(NamedTuple):
    user: Tensor
    item: Tensor


class Named(dict[str, Tensor]):
    """Tensors by name, as attributes too; torch knows it as a container."""

    user = property(lambda self: self["user"])
    item = property(lambda self: self["item"])

    @classmethod
    def of(cls, user: Tensor, item: Tensor) -> Named:
        return cls(user=user, item=item)


torch.export.register_dataclass(Batch)
pytree.register_pytree_node(
    Named,
    lambda x: (list(x.values()), list(x)),
    lambda values, names: Named(zip(names, values, strict=True)),
    flatten_with_keys_fn=lambda x: ([(pytree.MappingKey(k), v) for k, v in x.items()], list(x)),
    serialized_type_name="test_as_written.Named",
)


class Reads(nn.Module):
    def __init__(self, returned: Any = None) -> None:
        super().__init__()
        self.user, self.item, self.returned = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), returned

    def forward(self, batch: Any) -> Any:
        made = self.user(batch.user) * self.item(batch.item)
        return self.returned(made, batch.user) if self.returned else made


def sides(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, WIDTH, dtype=torch.float64), torch.randn(count, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("kind", [Batch, Pair, Named.of])
def test_inputs_in_containers_of_ones_own(kind: Any):
    model = Reads().double().eval()
    user, item = sides(5)
    made = hoisted_at(capture(model, (kind(user.expand(5, -1), item),), ["user"]), Level.REQUEST)
    user, item = sides(7)
    assert_equal(made(kind(user, item)), model(kind(user.expand(7, -1), item)))


def test_dataclasses_that_torch_does_not_know():
    """They are known from then on, of what a model takes and returns; whoever loads a file makes them known."""

    @dataclass
    class Other(Plain):
        pass

    model = Reads(Other).double().eval()
    user, item = sides(4)
    with pytest.raises(InputError, match=r"got batch. Register the type of 'batch': .*register_dataclass\(Plain\)"):
        hoisted_at(capture(model, (Batch(user.expand(4, -1), item),), ["user"]), Level.REQUEST)(Plain(user, item))
    made = hoisted_at(capture(model, (Plain(user.expand(4, -1), item),), ["user"]), Level.REQUEST)
    result, truth = made(Plain(user, item)), model(Plain(user.expand(4, -1), item))
    assert type(result) is type(truth) is Other
    assert_equal((result.user, result.item), (truth.user, truth.item))


class Two(nn.Module):
    def __init__(self, user: nn.Module | None = None) -> None:
        super().__init__()
        self.user = user or nn.Linear(WIDTH, WIDTH)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.user(user) * item


@pytest.mark.parametrize("by_name", [True, False])
def test_hooks_see_arguments_as_the_example_gives_them(by_name: bool):
    model = Two().double().eval()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {name: x + 1 for name, x in kwargs.items()}), with_kwargs=True
    )

    def given(user: Tensor, item: Tensor) -> Any:
        return {"user": user, "item": item} if by_name else (user, item)

    user, item = sides(5)
    made = hoisted_at(capture(model, given(user.expand(5, -1), item), ["user"]), Level.REQUEST)
    user, item = sides(7)
    whole = user.expand(7, -1)
    if by_name:
        assert_equal(made(user=user, item=item), model(user=whole, item=item))
    else:
        assert_equal(made(user, item), model(whole, item))
    with pytest.raises(InputError, match="do not fit the model's signature"):
        made(*given(user, item).values()) if by_name else made(user=user, item=item)


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (nn.LazyLinear(WIDTH), r"parameter 'user.weight' has no shape yet: its module is lazy"),
        (nn.Linear(WIDTH, WIDTH, device="meta"), r"parameter 'user.weight' is on the meta device and has no values"),
        (nn.BatchNorm1d(WIDTH, affine=False, device="meta"), r"buffer 'user.running_mean' is on the meta device"),
    ],
)
def test_weights_without_values_are_named(user: nn.Module, message: str):
    with pytest.raises(UnsupportedModelError, match=message):
        capture(Two(user).eval(), (torch.randn(4, WIDTH), torch.randn(4, WIDTH)), ["user"])


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else x * 2


def test_the_line_that_does_not_export_is_said():
    with pytest.raises(ExportError, match=r"line \d+ of .*test_as_written.py: return x if x.sum\(\) > 0"):
        capture(Two(Gate()).eval(), (torch.randn(4, WIDTH), torch.randn(4, WIDTH)), ["user"])


class Compiles(nn.Module):
    """As a library that writes code for the shapes that it meets."""

    def forward(self, x: Tensor) -> Tensor:
        made: dict[str, Any] = {}
        exec(f"def f(x): return x.reshape({int(x.shape[0])}, -1)", made)
        return made["f"](x)


def test_the_line_that_fixes_the_number_of_rows_is_said():
    x = torch.randn(4, WIDTH)
    with pytest.raises(ExportError, match=r"module 'user' \(Compiles\): it fixes the number of rows") as refused:
        hoist(Two(Compiles()).eval(), (x, x), context=["user"])
    assert re.search(rf"It is line \d+ of {re.escape(__file__)}: exec\(.*int\(x.shape\[0\]\)", str(refused.value))
    assert "mark_dynamic" not in str(refused.value)


class Changing(nn.Module):
    """Changes a weight in place, as an adapter that is merged for a call does."""

    def __init__(self, through: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.through, self.layer = through, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.through(self.layer.weight).add_(self.layer.bias)
        return self.layer(x)


def test_why_a_weight_cannot_be_written_is_in_the_first_line():
    with pytest.raises(ExportError) as refused:
        capture(Two(Changing(lambda w: w)).eval(), (torch.randn(4, WIDTH), torch.randn(4, WIDTH)), ["user"])
    first, *rest = str(refused.value).splitlines()
    said = ": RuntimeError: a leaf Variable that requires grad"
    assert said in first and all(said not in line for line in rest)


def test_the_data_of_a_tensor_is_read_and_not_written():
    def read(m: Keeps, y: Tensor) -> Tensor:
        m.user.weight.data = m.user.weight.data.to(y.device)  # as it was
        return y * m.scales.data + m.user.weight.data[0] * y.data.exp()

    user, item = torch.randn(4, WIDTH), torch.randn(4, WIDTH)
    model = Keeps(read).eval().double()
    hoisted = hoist(model, (user.double(), item.double()), context=["user"])
    assert_equal(hoisted(user[:1].double(), item.double()), model(user[:1].double().expand(4, -1), item.double()))
    for layer in (Changing(lambda w: w.data), Changing(lambda w: w.data.view(-1)[:WIDTH])):
        with pytest.raises(UnsupportedModelError, match=r"writes to its parameter 'user.layer.weight'.*LoRA"):
            capture(Two(layer).eval(), (user, item), ["user"])


def doubled(m: Keeps, y: Tensor) -> Tensor:
    m.scales.data = m.scales * 2
    return y * m.scales


def renormed(m: Keeps, y: Tensor) -> Tensor:
    y.data = y.data / 2
    return y


@pytest.mark.parametrize("call", [doubled, renormed])
def test_other_elements_are_not_given_to_a_tensor(call):
    """A weight of every call would be another, and no graph shows it."""
    with pytest.raises(ExportError, match=r"forward gives a tensor other elements, `x.data = ...`"):
        capture(Keeps(call).eval(), (torch.randn(4, WIDTH), torch.randn(4, WIDTH)), ["user"])


class Keeps(Two):
    """What it keeps in an attribute, and what comes of a score."""

    def __init__(self, call: Callable[[Keeps, Tensor], Tensor]) -> None:
        super().__init__()
        self.call, self.calls, self.kept = call, 0, None
        self.scales = torch.ones(WIDTH, dtype=torch.float64)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.call(self, super().forward(user, item))


def counted(m: Keeps, y: Tensor) -> Tensor:
    m.calls += 1
    return y * m.calls


def scaled(m: Keeps, y: Tensor) -> Tensor:
    m.scales = m.scales * 2
    return y * m.scales


def smoothed(m: Keeps, y: Tensor) -> Tensor:
    m.kept = y if m.kept is None else m.kept * 0.9 + y
    return m.kept


@pytest.mark.parametrize(("call", "name"), [(counted, "calls"), (scaled, "scales"), (smoothed, "kept")])
def test_what_is_read_in_the_next_call_is_refused(call: Any, name: str):
    user, item = sides(4)
    with pytest.raises(UnsupportedModelError, match=f"two calls on the same rows differ, and it writes '{name}'"):
        hoist(Keeps(call).double().eval(), (user.expand(4, -1), item), context=["user"])


def looked_at(m: Keeps, y: Tensor) -> Tensor:
    m.kept, m.calls = y.softmax(1), m.calls + 1
    return y * m.kept


def made_once(m: Keeps, y: Tensor) -> Tensor:
    if m.kept is None:
        m.kept = torch.arange(WIDTH, dtype=y.dtype)
    return y * m.kept


@pytest.mark.parametrize("call", [looked_at, made_once])
def test_what_no_call_reads_of_another_is_kept_for_nothing(call: Any):
    model = Keeps(call).double().eval()
    user, item = sides(5)
    made = hoist(model, (user.expand(5, -1), item), context=["user"])
    assert (model.calls, model.kept) == (0, None), "the model is as it was"
    user, item = sides(7)
    assert_equal(made(user, item), model(user.expand(7, -1), item))


class Shown(Two):
    """Keeps an array to be looked at."""

    def __init__(self, read: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.read = read

    def forward(self, user, item):
        made = super().forward(user, item)
        self.seen = made.softmax(1).mean(0).detach().cpu().numpy()
        return self.read(made, self.seen)


def test_an_array_that_is_kept_to_be_looked_at_is_left_out():
    model, (user, item) = Shown(lambda made, seen: made).double().eval(), sides(5)
    made = hoist(model, (user.expand(5, -1), item), context=["user"])
    assert_equal(made(user, item), model(user.expand(5, -1), item))
    assert model.seen.shape == (WIDTH,)


@pytest.mark.parametrize(
    "read",
    [
        lambda made, seen: made + seen[0],
        lambda made, seen: made * seen.shape[0],
        lambda made, seen: made if seen.mean() > 0 else -made,
        lambda made, seen: made if (seen == 3).all() else -made,
        lambda made, seen: made * torch.tensor(seen),
        lambda made, seen: made if str(seen) else -made,
        lambda made, seen: made if 3 in seen else -made,
    ],
)
def test_an_array_that_is_read_is_refused(read: Callable[[Tensor, Any], Tensor]):
    user, item = sides(5)
    with pytest.raises(ExportError, match=r"what \.numpy\(\) gives of an input's values is read in forward"):
        hoist(Shown(read).double().eval(), (user.expand(5, -1), item), context=["user"])


class Measured(nn.Module):
    """Lengths beside a check of data, which torch's strict exporter does not take."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        assert user.abs().max() < 99, "too large"
        return (user * item).sum(1) + torch.ones(len(item), len(item[0])).sum(1) * len(user[0])


def test_a_length_is_a_size_of_any_number_of_rows():
    model, (user, item) = Measured().eval(), torch.rand(2, 7, WIDTH)
    hoisted = hoist(model, (user[:1].expand(4, -1), item[:4]), context=["user"])
    for count in (1, 3, 7):
        assert_equal(hoisted(user[:1], item[:count]), model(user[:1].expand(count, -1), item[:count]))
    assert "len" not in globals()


CONTAINER = "class Features:\n    def __init__(self, x): self.x = x\n\n    def rows(self): return len(self.x)\n"
LAYER = """import torch
from {package}.containers import Features

class Counting(torch.nn.Module):
    def forward(self, user, item):
        return (user * item).sum(1) + torch.ones(Features(item).rows())
"""


def test_a_length_is_a_size_in_all_files_of_a_models_package(tmp_path, monkeypatch):
    """A library's containers of features are not in the files of its layers."""
    package = tmp_path / "shop_with_containers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "containers.py").write_text(CONTAINER)
    (package / "layers.py").write_text(LAYER.format(package=package.name))
    monkeypatch.syspath_prepend(tmp_path)
    layers = importlib.import_module(f"{package.name}.layers")
    model, (user, item) = layers.Counting().eval(), torch.rand(2, 7, WIDTH)
    hoisted = hoist(model, (user[:4], item[:4]), context=["user"])
    assert_equal(hoisted(user[:1], item), model(user[:1].expand(7, -1), item))
    assert "len" not in vars(layers) and "len" not in vars(sys.modules[f"{package.name}.containers"])
