"""Arguments of another kind than a public call takes: each is refused by its name, by an error of our tree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rankhoist_client import Client
from torch import nn

import rankhoist
from rankhoist.errors import ArtifactError, CaptureError, ContextError, InputError, RankhoistError, WeightsError
from rankhoist.runtime import load_onnx
from rankhoist.score import Options, TableScorer
from rankhoist.training import ImpressionLog, RequestBatches


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(10, 4), nn.Embedding(20, 4)
        self.top = nn.Linear(9, 1)

    def forward(self, user, item, place):
        return self.top(torch.cat([self.user(user), self.item(item), place], 1)).squeeze(1)


ROWS = (torch.randint(0, 10, (6,)), torch.randint(0, 20, (6,)), torch.rand(6, 1))


def hoist(**own: Any) -> rankhoist.HoistedModel:
    return rankhoist.hoist(Ranker().eval(), ROWS, **{"context": ["user"], "item": ["item"], **own})


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    torch.manual_seed(0)
    model = Ranker().eval()
    hoisted = rankhoist.hoist(model, ROWS, context=["user"], item=["item"])
    store = hoisted.catalogue({"item": torch.arange(20)})
    user, place = torch.tensor([3]), {"place": torch.rand(2, 1)}
    path = tmp_path_factory.mktemp("arguments") / "ranker.rankhoist"
    hoisted.save(path)
    return SimpleNamespace(
        model=model, hoisted=hoisted, store=store, user=user, place=place, folder=path.parent, path=str(path),
        state=hoisted.prepare([user]), stocked=hoisted.prepare([user], store=store),
        step=rankhoist.grouped(Ranker(), ROWS, context=["user"]),
        log=ImpressionLog({"user": torch.tensor([1, 1]), "item": torch.arange(2)}, request=torch.tensor([5, 5]),
                          context="user"),
    )  # fmt: skip


PATHS = {
    "save": lambda g: g.hoisted.save(5),
    "load": lambda g: rankhoist.load(5),  # the system would read the file that is open by this number
    "export_onnx": lambda g: g.hoisted.export_onnx(5),
    "package": lambda g: g.hoisted.package(None),
    "load_onnx": lambda g: load_onnx(5),
    "catalogue": lambda g: g.hoisted.catalogue({"item": torch.arange(20)}, path=5),
    "open_catalogue": lambda g: g.hoisted.open_catalogue(5),
    "save_html": lambda g: g.hoisted.report().save_html(5),
    "out": lambda g: Options(g.path, 5),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_number_is_no_path(given, name):
    with pytest.raises(InputError, match=r"(path|folder|out) is (int 5|None), expected a text or a pathlib.Path"):
        PATHS[name](given)


KINDS: dict[str, tuple[Callable[[Any], Any], type[RankhoistError], str]] = {
    "context": (lambda g: hoist(context=5), ContextError, "context is 5, expected a list of names .* user, item"),
    "columns": (lambda g: hoist(context={"place": 0}), ContextError, "columns of input 'place' are 0, expected a list"),
    "level": (lambda g: hoist(level=3), CaptureError, "unknown level 3"),
    "workload": (lambda g: hoist(workload=100), InputError, "workload is int 100, expected rankhoist.Workload"),
    "no_candidate": (
        lambda g: hoist(workload=rankhoist.Workload(-1)), InputError, "1 candidate and 1 request or more, got"),
    "grouped": (
        lambda g: rankhoist.grouped(g.model, ROWS, context=["user"], workload=5), InputError, "workload is int 5"),
    "hoisted": (
        lambda g: rankhoist.hoist(g.hoisted, ROWS, context=["user"]), CaptureError, "the model is hoisted already"),
    "regrouped": (
        lambda g: rankhoist.grouped(g.step, ROWS, context=["user"]), CaptureError, "is a GroupedModel already"),
    "dynamic": (lambda g: hoist(dynamic=["user"]), InputError, "dynamic is list, expected a mapping"),
    "jagged": (lambda g: hoist(jagged=["user"]), InputError, "jagged is list, expected a mapping"),
    "seconds": (lambda g: hoist(seconds="1"), InputError, "the search for plans is given '1' seconds"),
    "opaque": (lambda g: hoist(opaque="user_tower"), CaptureError, "opaque names 'user_tower', which is no module"),
    "no_inputs": (lambda g: g.hoisted.prepare(None), InputError, "context inputs are NoneType, expected {name"),
    "no_state": (lambda g: g.hoisted.score(7, [ROWS[1], ROWS[2]]), InputError, "state is int 7, expected what prepare"),
    "no_store": (lambda g: g.hoisted.prepare([g.user], store=5), InputError, "store is int 5, expected what catalogue"),
    "rank_store": (lambda g: g.hoisted.rank_all(g.stocked, None), InputError, "store is None, expected what catalogue"),
    "rank_k": (
        lambda g: g.hoisted.rank_all(g.stocked, g.store, 1.5, pair_inputs=[ROWS[2][:1]]), InputError,
        "k: float 1.5 is no whole number"),
    "weights": (lambda g: g.hoisted.update_weights(g.model), InputError, "state_dict is Ranker, expected a mapping"),
    "a_weight": (
        lambda g: g.hoisted.update_weights({n: w.numpy() for n, w in g.model.state_dict().items()}), WeightsError,
        "weight 'user.weight' is ndarray, expected a tensor"),
    "warm_up": (lambda g: g.hoisted.warm_up(candidates=["a"]), InputError, "candidates: str 'a' is no whole number"),
    "below": (lambda g: g.hoisted.warm_up(candidates=[-5]), InputError, "0 and more of each"),
    "tune": (lambda g: g.hoisted.tune(candidates=10), InputError, r"candidates is int 10, .* such as \[100, 1000\]"),
    "tune_seconds": (lambda g: g.hoisted.tune([10], seconds="1"), InputError, "seconds is str '1', expected a number"),
    "verify": (lambda g: rankhoist.verify(g.model, g.hoisted), InputError, "first argument is Ranker, expected the h"),
    "sizes": (
        lambda g: rankhoist.verify(g.hoisted, g.model, candidates=[1.5]), InputError,
        "candidates: float 1.5 is no whole"),
    "seed": (lambda g: rankhoist.verify(g.hoisted, g.model, seed="a"), InputError, "seed: str 'a' is no whole number"),
    "gradients": (lambda g: rankhoist.verify_gradients(g.hoisted), InputError, "expected what rankhoist.grouped"),
    "step_tune": (lambda g: g.step.tune(candidates=5), InputError, "candidates is int 5"),
    "log": (lambda g: ImpressionLog([1], request="r", context=[]), InputError, "columns is list, expected a mapping"),
    "column": (
        lambda g: ImpressionLog({"a": [1, 2]}, request=torch.ones(2), context=[]), InputError,
        r"column 'a' is list, expected a tensor \[rows, ...\]: torch.as_tensor"),
    "no_rows": (
        lambda g: ImpressionLog({"a": torch.ones(0)}, request=torch.ones(0), context=[]), InputError, "has no rows"),
    "no_requests": (lambda g: g.log.collate([]), InputError, "at least 1 request, got none"),
    "batches": (lambda g: RequestBatches(g.log, "a"), InputError, "rows: str 'a' is no whole number"),
    "budget": (lambda g: Options(g.path, "out", budget=0), InputError, "budget is 0: a number of candidates"),
    "table": (lambda g: TableScorer(g.path)(5), InputError, "requests is int 5, expected a pyarrow.Table"),
    "url": (lambda g: Client(5), InputError, "5 is no URL of a server, such as http"),
    "model": (lambda g: Client().rank(5, {}, {}), InputError, "model is int, expected its name on the server"),
    "top_k": (lambda g: Client().rank("m", {}, {}, top_k="a"), InputError, "top_k is 'a', expected a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_another_kind_is_refused_by_its_name(given, name):
    call, kind, words = KINDS[name]
    with pytest.raises(kind, match=words):
        call(given)


def test_what_is_of_a_store_is_not_left_out(given):
    """Ids beside candidate inputs were ignored: all candidates were scored as they stood."""
    candidates = [torch.arange(2), given.place["place"]]
    assert given.hoisted.score(given.state, candidates).shape == (2,)
    for beside in ({"ids": [3, 4]}, {"rows": [3, 4]}, {"pair_inputs": given.place}):
        with pytest.raises(InputError, match="are of a store: pass store="):
            given.hoisted.score(given.state, candidates, **beside)


def test_a_state_is_scored_by_its_own_model(given, tmp_path):
    """Also by a copy, which has the same plans, and after a move to where the model is."""
    inputs = [torch.arange(2), given.place["place"]]
    expected = given.hoisted.score(given.state, inputs)
    for same in (copy.deepcopy(given.hoisted), copy.copy(given.hoisted).to("cpu")):
        torch.testing.assert_close(same.score(given.state, inputs), expected)
    other = rankhoist.load(given.path)
    for model in (other, hoist()):
        with pytest.raises(InputError, match="prepared by another model"):
            model.score(given.state, inputs)
    with pytest.raises(InputError, match="prepared by another model"):
        hoist().rank_all(given.stocked, given.store)


def test_an_exported_model_scores_its_own_states_alone(tmp_path):
    pytest.importorskip("onnxruntime")
    model = nn.Bilinear(3, 4, 1).eval()
    hoisted = rankhoist.hoist(model, (torch.randn(4, 3), torch.randn(4, 4)), context=["input1"])
    hoisted.export_onnx(tmp_path)
    runner, rows = load_onnx(tmp_path), [torch.randn(2, 4)]
    context = [torch.randn(1, 3)]
    torch.testing.assert_close(
        runner.score(runner.prepare(context), rows), hoisted.score(hoisted.prepare(context), rows)
    )
    for state in (hoisted.prepare(context), load_onnx(tmp_path).prepare(context)):
        with pytest.raises(InputError, match="prepared by another model"):
            runner.score(state, rows)


def test_one_text_is_not_the_list_of_its_letters(given):
    assert given.log.context["user"].tolist() == [1]
    options = Options(given.path, "out", candidates="rows.parquet", keep="item")
    assert (options.candidates, options.keep) == (["rows.parquet"], ["item"])


def test_a_log_is_gone_through_to_its_end(given):
    """By the error that ends a loop, which another one does not."""
    assert [r.impressions for r in given.log] == [2]
    assert given.log[-1].candidate["item"].tolist() == [0, 1]


def test_a_sparse_input_is_told(given):
    with pytest.raises(InputError, match=r"'place' is torch.sparse_coo, expected a dense tensor: to_dense\(\)"):
        given.hoisted(given.user, torch.arange(2), given.place["place"].to_sparse())


def test_what_cannot_be_written_is_told(given):
    file = Path(given.path)
    for write in (given.hoisted.report().save_html, given.hoisted.report().save_svg):
        with pytest.raises(ArtifactError, match="cannot be written: No such file"):
            write(given.folder / "none" / "x")
    with pytest.raises(ArtifactError, match="cannot be written: File exists"):
        given.hoisted.export_onnx(file)
