"""An impression log by request: its batches are those of a grouped module, and equal to rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rankhoist
from rankhoist.errors import InputError
from rankhoist.lab.data import generate_request_log
from rankhoist.lab.train import Settings, build_model, train
from rankhoist.training import ImpressionLog, RequestBatches

# Rows of the requests 7, 3 and 5, as a log has them: not in order.
REQUEST = torch.tensor([7, 3, 7, 5, 3, 7])
COLUMNS = {
    "request": REQUEST,
    "user": REQUEST * 10,
    "history": torch.stack([REQUEST, REQUEST + 1], 1),
    "item": torch.arange(6),
    "click": torch.tensor([0.0, 1, 1, 0, 0, 1]),
}


def log(**changed: Tensor) -> ImpressionLog:
    context, targets = ["user", "history"], ["click"]
    return ImpressionLog(COLUMNS | changed, request="request", context=context, targets=targets)


def test_an_item_is_a_request_with_one_row_of_context():
    made = log()
    assert len(made) == 3
    context, candidate, impressions = made[0]  # the first that comes
    assert context["user"].tolist() == [70] and context["history"].tolist() == [[7, 8]] and impressions == 3
    assert candidate["item"].tolist() == [0, 2, 5] and candidate["click"].tolist() == [0, 1, 1]


def test_a_batch_is_what_a_grouped_module_takes():
    made = log()
    batch = made.collate([made[0], made[1]])
    assert {name: x.tolist() for name, x in batch.inputs.items()} == {
        "user": [70, 30], "history": [[7, 8], [3, 4]], "item": [0, 2, 5, 1, 4]
    }  # fmt: skip
    assert batch.request_offsets.tolist() == [0, 3, 5]
    assert batch.targets["click"].tolist() == [0, 1, 1, 1, 0]
    assert batch.rows()["user"].tolist() == [70, 70, 70, 30, 30]


def test_a_context_column_that_differs_within_a_request_is_refused():
    user = COLUMNS["user"].clone()
    user[4] = 31
    with pytest.raises(InputError, match=r"context column 'user' is not the same.*: rows 1 and 4 are of one"):
        log(user=user)
    gaps = torch.where(REQUEST == 3, torch.nan, 1.0)
    assert len(log(user=gaps)) == 3  # a missing value is like itself


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="no column 'hour'; the columns are request, user"):
        ImpressionLog(COLUMNS, request="request", context=["hour"])
    with pytest.raises(InputError, match="6 rows belong to requests; the columns have"):
        log(item=torch.arange(5))


# -- batches


@pytest.fixture(scope="module")
def many() -> ImpressionLog:
    request = torch.arange(40).repeat_interleave(torch.arange(40) % 7 + 1)
    return ImpressionLog({"user": request, "item": torch.arange(len(request))}, request=request, context=["user"])


def test_batches_hold_every_request_once_within_their_bound(many: ImpressionLog):
    batches = list(RequestBatches(many, 10))
    assert sorted(r for batch in batches for r in batch) == list(range(40))
    sizes = [int(many.offsets.diff()[batch].sum()) for batch in batches]
    assert max(sizes) <= 10 and len(batches) == len(RequestBatches(many, 10))


def test_a_request_larger_than_the_bound_is_a_batch_of_its_own(many: ImpressionLog):
    batches = list(RequestBatches(many, 3))
    assert sorted(r for batch in batches for r in batch) == list(range(40))
    assert all(len(batch) == 1 for batch in batches if int(many.offsets.diff()[batch].sum()) > 3)


def test_requests_are_shuffled_anew_in_every_epoch(many: ImpressionLog):
    first, again, other = RequestBatches(many, 10), RequestBatches(many, 10), RequestBatches(many, 10, seed=1)
    assert list(first) == list(again) != list(other)
    again.set_epoch(1)
    assert list(first) != list(again)
    with pytest.raises(InputError, match="at least 1 row"):
        RequestBatches(many, 0)


class Ranker(nn.Module):
    """A user, the mean of a history, an item."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(100, 6), nn.Embedding(20, 6)
        self.norm, self.out = nn.BatchNorm1d(18), nn.Linear(18, 1)

    def forward(self, user: Tensor, history: Tensor, item: Tensor) -> Tensor:
        x = torch.cat([self.users(user), self.items(history).mean(1), self.items(item)], 1)
        return self.out(self.norm(x)).squeeze(1)


def test_a_loader_feeds_a_grouped_module_with_the_gradients_of_rows():
    torch.manual_seed(0)
    model = Ranker().double()
    example = {name: COLUMNS[name] for name in ("user", "history", "item")}
    step = rankhoist.grouped(model, example, context=["user", "history"])
    made = log()
    loader = DataLoader(made, batch_sampler=RequestBatches(made, 4), collate_fn=made.collate)
    assert len(loader) == 2
    for batch in loader:
        found = []
        for scores in (step(**batch.inputs, request_offsets=batch.request_offsets), model(**batch.rows())):
            model.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(scores, batch.targets["click"].double()).backward()
            found.append([p.grad.clone() for p in model.parameters()])
        for name, one, other in zip(dict(model.named_parameters()), *found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


# -- files


def written(folder: Path, **changed: pa.Array) -> Path:
    columns = {
        "request": pa.array([7, 3, 7]), "user": pa.array([70, 30, 70]),
        "price": pa.array([0.5, 1.5, 2.5], pa.float32()),
        "history": pa.array([[7, 8], [3, 4], [7, 8]], pa.list_(pa.int64())), "click": pa.array([True, False, True]),
    }  # fmt: skip
    parquet.write_table(pa.table(columns | changed), folder / "log.parquet")
    return folder / "log.parquet"


def from_file(path: Path, **given: object) -> ImpressionLog:
    return ImpressionLog.from_parquet(
        path, request="request", context=["user", "history"], targets=["click"], **given  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_log_is_read_from_parquet(tmp_path: Path):
    made = from_file(written(tmp_path))
    context, candidate, _ = made[0]
    assert context["history"].tolist() == [[7, 8]] and candidate["click"].tolist() == [True, True]
    assert candidate["price"].dtype == torch.float32 and candidate["price"].tolist() == [0.5, 2.5]
    assert list(from_file(tmp_path, columns=[]).candidate) == ["click"]  # a folder, and only what is asked for


def test_requests_are_told_apart_by_text_too(tmp_path: Path):
    made = from_file(written(tmp_path, request=pa.array(["b", "a", "b"]).dictionary_encode()))
    assert [made[r].candidate["click"].tolist() for r in range(2)] == [[True, True], [False]]


def test_whole_numbers_without_a_sign_are_read(tmp_path: Path):
    made = from_file(written(tmp_path, price=pa.array([2**32 - 1, 0, 1], pa.uint32())))
    assert made[0].candidate["price"].tolist() == [2**32 - 1, 1]


def test_columns_of_files_that_are_no_tensors_are_refused(tmp_path: Path):
    for column, problem in (
        (pa.array(["a", "b", "c"]), "column 'price' holds string, expected numbers"),
        (pa.array([1.0, None, 2.0]), "column 'price' has 1 gaps, the first in row 1"),
        (pa.array([[1], [2], [None]]), "column 'price' has 1 gaps in its lists, the first in row 2"),
        (pa.array([0, 2**63, 0], pa.uint64()), "column 'price' holds 9223372036854775808"),
        (pa.array([[1.0], [1.0, 2.0], []]), "column 'price' holds lists of 0 to 2 values: name it in jagged"),
    ):
        with pytest.raises(InputError, match=problem):
            from_file(written(tmp_path, price=column))
    with pytest.raises(InputError, match=r"cannot be read"):
        from_file(tmp_path / "nowhere.parquet")


# -- the trainer


def test_grouped_training_is_training_on_the_same_requests():
    data = generate_request_log(3000, seed=0, items=100, users=20)
    results = {}
    for kind in ("requests", "grouped"):
        model = build_model("deepfm", data, 0, scale=0.125)
        settings = Settings(epochs=1, batch_size=256, batches=kind)
        results[kind] = train(model, data, settings, progress=False)
    curves = [results[kind].curve[0] for kind in ("requests", "grouped")]
    assert curves[0].train_loss == pytest.approx(curves[1].train_loss, rel=1e-4)
    assert results["requests"].test.auc == pytest.approx(results["grouped"].test.auc, abs=1e-3)
