"""Modules that do not export are kept as they are, called once per row of the side that they read."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import assert_equal, repeated
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import rankhoist
from rankhoist.errors import ArtifactError, BackendError, CaptureError, ExportError, WeightsError

USERS, ITEMS, LENGTH, D = 100, 50, 6, 4


class Interests(nn.Module):
    """A recurrent layer over packed histories; says how many rows it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.steps, self.rows = nn.Embedding(USERS, D), nn.GRU(D, D, batch_first=True), []
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, history: Tensor, length: Tensor, times: float = 1.0) -> dict[str, Any]:
        self.rows.append(len(history))
        packed = pack_padded_sequence(self.ids(history), length.cpu(), batch_first=True, enforce_sorted=False)
        return {"last": self.steps(packed)[1] * self.scale * times, "version": 3}  # [1, rows, D]


class Trimmed(nn.Module):
    """As much of a list as has values: a size that data decides, inside of it."""

    def forward(self, x: Tensor) -> Tensor:
        used = (x != 0).any(0).nonzero()
        return x[:, : int(used.max()) + 1 if len(used) else 1].sum(1)


class Ranker(nn.Module):
    """One kept module of the user's, one that both sides share."""

    def __init__(self) -> None:
        super().__init__()
        self.interests, self.item, self.trimmed = Interests(), nn.Embedding(ITEMS, D), Trimmed()
        self.top = nn.Linear(2 * D + 2, 1)

    def forward(self, history: Tensor, length: Tensor, item: Tensor, tags: Tensor) -> Tensor:
        user = self.interests(history, length, times=0.5)["last"][0]
        sums = [self.trimmed(x).unsqueeze(1).to(user.dtype) for x in (history, tags)]
        return self.top(torch.cat([user, self.item(item), *sums], 1)).squeeze(1)


def rows(count: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Of the context and of the candidates."""
    context = torch.randint(USERS, (count, LENGTH)), torch.randint(1, LENGTH + 1, (count,))
    return context, (torch.randint(ITEMS, (count,)), torch.randint(3, (count, 5)))


KEPT = ["interests", "trimmed"]


@pytest.fixture(scope="module")
def model() -> Ranker:
    torch.manual_seed(0)
    return Ranker().double().eval()


@pytest.fixture(scope="module")
def hoisted(model: Ranker) -> rankhoist.HoistedModel:
    context, candidate = rows(4)
    return rankhoist.hoist(model, (*context, *candidate), context=["history", "length"], opaque=KEPT)


def check(hoisted: rankhoist.HoistedModel, model: nn.Module, offsets: list[int]) -> None:
    context, candidate = rows(len(offsets) - 1)[0], rows(offsets[-1])[1]
    made = hoisted(*context, *candidate, request_offsets=offsets)
    if offsets[-1]:
        assert_equal(made, model(*(repeated(x, offsets) for x in context), *candidate))
    else:
        assert made.shape == (0,)


@pytest.mark.parametrize("offsets", [[0, 9], [0, 4, 4, 7], [0, 1], [0, 0], [0]])
def test_kept_modules_are_equal(hoisted, model, offsets):
    check(hoisted, model, offsets)


@pytest.mark.parametrize("level", ["expand", "request", "first"])
def test_at_every_level(model, level):
    context, candidate = rows(4)
    own = rankhoist.hoist(model, (*context, *candidate), context=["history", "length"], opaque=KEPT, level=level)
    check(own, model, [0, 3, 3, 9])


def test_each_is_called_once_per_row_of_its_side(hoisted):
    module = hoisted.weights.opaque["interests:0"].module
    assert module is not None
    module.rows.clear()
    check(hoisted, Ranker(), [0, 0])
    check_rows = rows(3)[0], rows(8)[1]
    hoisted(*check_rows[0], *check_rows[1], request_offsets=[0, 2, 2, 8])
    assert module.rows[-1] == 3
    (own,) = (m for m in hoisted.report().modules() if m.path == "interests")
    assert own.before.multiply_adds == hoisted.plan.workload.candidates * own.after.multiply_adds > 0
    assert "interests is kept as it is (opaque)" in str(hoisted.report())


def test_without_it_the_refusal_names_the_module_that_helps(model):
    context, candidate = rows(4)
    with pytest.raises(ExportError, match=r"in module 'trimmed.*opaque=\['trimmed'\]\) helps"):
        rankhoist.hoist(model, (*context, *candidate), context=["history", "length"])


def test_new_weights(model, hoisted):
    """A call under way keeps the version that it started with; the original is left alone."""
    own, other = copy.deepcopy(hoisted), Ranker().double().eval()
    before = copy.deepcopy(model.state_dict())
    context, candidate = rows(1)[0], rows(5)[1]
    state = own.prepare(context)
    own.update_weights(other.state_dict())
    check(own, other, [0, 2, 7])
    assert_equal(own.score(state, candidate), model(*(repeated(x, [0, 5]) for x in context), *candidate))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    check(hoisted, model, [0, 5])


def test_another_dtype(model, hoisted):
    own = copy.deepcopy(hoisted).float()
    context, candidate = rows(1)[0], rows(5)[1]
    assert own(*context, *candidate).dtype == torch.float32
    expected = model(*(repeated(x, [0, 5]) for x in context), *candidate).float()
    torch.testing.assert_close(own(*context, *candidate), expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_file_needs_the_modules(model, hoisted, tmp_path):
    path = tmp_path / "ranker.rankhoist"
    hoisted.save(path)
    modules: dict[str, nn.Module] = {"interests": Interests().double(), "trimmed": Trimmed()}
    with pytest.raises(ArtifactError, match=r"opaque=\{'interests': a module of class Interests, 'trimmed': a module"):
        rankhoist.load(path)
    with pytest.raises(ArtifactError, match=r"'interests' is no Interests as it was saved: weight 'interests\."):
        rankhoist.load(path, opaque=modules | {"interests": nn.Linear(2, 2)})
    loaded = rankhoist.load(path, opaque=modules)
    check(loaded, model, [0, 3, 3, 9])
    other = Ranker().double().eval()
    loaded.update_weights(other.state_dict())
    check(loaded, other, [0, 3, 3, 9])
    loaded.save(tmp_path / "again")
    check(rankhoist.load(tmp_path / "again", opaque=modules), other, [0, 6])


def test_exports_refuse_by_name(hoisted, tmp_path):
    for export in (hoisted.export_onnx, hoisted.package):
        with pytest.raises(BackendError, match=r"does not take module 'interests', which is kept as it is"):
            export(tmp_path)


def test_the_certificate_says_what_is_tested(model, hoisted):
    certificate = rankhoist.verify(hoisted, model, candidates=(1, 7))
    assert certificate.passed and certificate.opaque == ("interests", "trimmed")
    assert "opaque    passed" in str(certificate) and "opaque: interests; that its rows" in str(certificate)
    assert rankhoist.Certificate.from_json(certificate.to_json()) == certificate


class Mixes(nn.Module):
    """Rows that meet, behind an operator that does not export."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if int(x.sum()) < 1000 else x


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.inner(x) * y).sum(1)


def around(inner: nn.Module, opaque: list[str]) -> tuple[nn.Module, rankhoist.HoistedModel]:
    model = Around(inner).double().eval()
    example = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    return model, rankhoist.hoist(model, example, context=["x"], opaque=opaque)


def test_rows_that_meet_are_found():
    model, hoisted = around(Mixes(), ["inner"])
    certificate = rankhoist.verify(hoisted, model, candidates=(7,))
    assert not certificate.passed and "opaque" in [check.name for check in certificate.failures]


class Infinite(nn.Module):
    """Rows by themselves that hold infinities, behind an operator that does not export."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(x > 1, torch.inf) if int(x.sum()) < 1000 else x


def test_infinities_of_rows_by_themselves_pass():
    model, hoisted = around(Infinite(), ["inner"])
    x = torch.tensor([[0.5, 2.0, 0.1], [0.2, 0.3, 0.4]]).double()
    assert rankhoist.verify(hoisted, model, (x, torch.ones_like(x)), candidates=(7,)).passed


class Otherwise(nn.Module):
    """What cannot be kept: results whose sizes are values, without rows, and of another kind."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        if self.how == "wide":
            return x[:, : int((x[0] > 0).sum())]
        return {"mean": x.mean(0), "set": object(), "flat": x.flatten()}[self.how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("mean", r"'inner' returns \[3\] for 13 rows: every result needs one axis of the rows"),
        ("flat", r"'inner' returns \[39\] for 13 rows"),
        ("set", r"'inner' returns no tensor for 13 rows"),
    ],
)
def test_what_cannot_be_kept(how, message):
    with pytest.raises(CaptureError, match=message):
        around(Otherwise(how), ["inner"])


def test_a_size_that_a_value_decides_is_refused_when_it_changes():
    class Wide(Around):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.inner(x).sum(1) * y[:, 0]

    example = torch.ones(5, 3), torch.randn(5, 3)
    hoisted = rankhoist.hoist(Wide(Otherwise("wide")).eval(), example, context=["x"], opaque=["inner"])
    with pytest.raises(
        CaptureError, match=r"'inner' returns \[\[1, 0\]\] for 1 rows, and was hoisted for \[\[1, 3\]\]"
    ):
        hoisted(-torch.ones(1, 3), torch.randn(2, 3))


def test_names_of_no_module():
    with pytest.raises(CaptureError, match="opaque names 'outer', which is no module of the model; there are inner"):
        around(Mixes(), ["outer"])
    program = torch.export.export(
        nn.Linear(3, 1), (torch.randn(5, 3),), dynamic_shapes=({0: torch.export.Dim("rows")},)
    )
    with pytest.raises(CaptureError, match="an exported program has no modules"):
        rankhoist.hoist(program, (torch.randn(5, 3),), context={"input": [0]}, opaque=["inner"])


def test_a_module_that_cannot_be_copied():
    class Handle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + int(x.sum() > 0)

        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("a handle of a kernel")

    with pytest.raises(WeightsError, match=r"'inner' cannot be copied \(TypeError: a handle of a kernel\)"):
        around(Handle(), ["inner"])


def test_what_a_kept_module_compiles_stays_compiled():
    """Its operations are counted as it is written: see findings/counting_flops_ends_compilation.sh."""
    ran: list[int] = []

    def counted(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        return lambda *given: ran.append(len(given)) or graph.forward(*given)

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(D, D)
            self.made = torch.compile(lambda x: self.map(x).relu(), backend=counted, dynamic=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.made(x)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = Kept()

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (self.kept(user) * item).sum(1)

    user, item = torch.randn(6, D), torch.randn(6, D)
    model = Both().eval()
    hoisted = rankhoist.hoist(model, (user, item), context=["user"], opaque=["kept"])
    assert hoisted.report().total().before.multiply_adds >= D * D
    ran.clear()
    assert_equal(hoisted(user[:1], item), model(user[:1].expand(6, D), item))
    assert len(ran) == 2
