"""Grouped models of bags: a request's are pooled once, forward and backward, and a log holds them once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from bagged import DOUBLE, SIZES, WIDTH, Pooled, Weighted, bags
from test_jagged import Tokens, of_two
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rankhoist import GroupedModel, Jagged, Split, Workload, grouped, verify_gradients
from rankhoist.errors import InputError, UnsupportedModelError
from rankhoist.training import ImpressionLog, RequestBatches

BATCH = Workload(9, 3)
CUT = {"tags": "tag_offsets", "words": "word_offsets"}
OFFSETS = [0, 4, 4, 9]


def group(model: nn.Module, level: str = "linear") -> GroupedModel:
    example = of_two(bags(SIZES), bags(SIZES, seed=3))
    return grouped(model, example, context=["tags"], jagged=CUT, workload=BATCH, level=level)


def certified(step: GroupedModel) -> bool:
    certificate = verify_gradients(step, candidates=(20,), requests=(1, 3))
    assert certificate.passed, certificate
    return True


class Normed(Pooled):
    """Dropout that is off, and a batch norm over what is pooled of both sides."""

    def __init__(self) -> None:
        super().__init__("mean", sparse=True)
        self.norm, self.drop = nn.BatchNorm1d(2 * WIDTH + 1).double(), nn.Dropout(0.5).eval()

    def forward(self, tags: Tensor, tag_offsets: Tensor, words: Tensor, word_offsets: Tensor, price: Tensor) -> Tensor:
        x = torch.cat([self.user(tags, tag_offsets), self.item(words, word_offsets), price], 1)
        return self.top(self.drop(self.norm(x))).squeeze(1)


@pytest.mark.parametrize("how", [
    dict(mode="sum", sparse=True), dict(mode="max"), dict(mode="mean", padding_idx=3),
], ids=str)  # fmt: skip
def test_gradients_of_bags(how: dict[str, Any]):
    step = group(Pooled(**how))
    assert certified(step)
    user, item = [n for n in step.plan.nodes if "embedding_bag" in str(n.op)]
    assert (user.rate.name, item.rate.name) == ("REQUEST", "ITEM")


def test_gradients_of_bags_over_all_candidates():
    assert certified(group(Pooled("mean"), "expand"))


def test_a_model_of_bags_stays_in_its_mode_and_its_statistics_are_of_rows():
    step = group(Normed(), "full")
    assert step.norm.training and not step.drop.training
    assert certified(step)
    tags, words = bags((2, 5, 3)), bags(SIZES, seed=1)
    given = {"tags": tags, "words": words, "price": torch.randn(9, 1, dtype=DOUBLE)}
    step(**given, request_offsets=OFFSETS).sum().backward()
    assert step.user.weight.grad.is_sparse and step.user.weight.grad._nnz() == 10  # values in the bags of requests
    assert step.tune(seconds=0.1).report().tuning is not None
    assert certified(step)  # whichever plan was the fastest


def test_ids_with_weights_have_gradients():
    tags, words = bags(SIZES, True), bags(SIZES, seed=3)
    example = *of_two(tags, words), tags.values[1]
    step = grouped(Weighted(), example, context=["tags"], jagged=CUT | {"strengths": "tag_offsets"}, workload=BATCH)
    assert certified(step)
    strengths = tags.values[1].requires_grad_()
    given = {"words": words, "price": example[4]}
    own = Jagged(tags.values[0], lengths=tags.lengths), Jagged(strengths, lengths=tags.lengths)
    scores = step(tags=own[0], strengths=own[1], **given, request_offsets=list(range(10)))
    assert torch.equal(scores, step(tags=tags, **given, request_offsets=list(range(10))))
    assert bool(torch.autograd.grad(scores.sum(), strengths)[0].any())
    with pytest.raises(InputError, match="'tags' and 'strengths' are columns of one jagged input"):
        step(tags=own[0], strengths=own[1][:3], **given, request_offsets=list(range(10)))
    with pytest.raises(InputError, match="jagged input 'tags' has the columns tags, strengths"):
        step(tags=own[0], **given, request_offsets=list(range(10)))


def test_layers_over_single_values():
    given = bags(SIZES)
    example = given.values[0], given.lengths, torch.randn(9, WIDTH, dtype=DOUBLE)
    cut = {"tags": {"lengths": "lengths"}}
    context = ["tags", "lengths"]
    assert certified(grouped(Tokens(), example, context=context, jagged=cut, workload=BATCH, level="linear"))


def test_bags_whose_gradients_are_scaled_by_frequency_are_refused():
    with pytest.raises(UnsupportedModelError, match="scales gradients"):
        group(Pooled("sum", scale_grad_by_freq=True))


def test_containers_of_torchrec():
    torchrec = pytest.importorskip("test_torchrec", reason="torchrec 1.8.0 is not installed")
    model = torchrec.Whole("deepfm").to(DOUBLE)
    example = torch.randn(9, torchrec.DENSE, dtype=DOUBLE), torchrec.container([*torchrec.USER, *torchrec.ITEM], 9, 0)
    step = grouped(model, example, context=["*user*"], workload=BATCH, level="lookup")
    scores, gradients = verify_gradients(step, candidates=(20,), requests=(3,)).checks
    assert scores.passed and gradients.error < 1e-6  # pooled vectors are float32 there, whatever the model's dtype is
    users, items = torchrec.container(torchrec.USER, 3, 1), torchrec.container(torchrec.ITEM, 9, 2)
    step(example[0], Split(users, items), request_offsets=OFFSETS).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# -- a log


REQUEST = [7, 3, 7, 5, 3, 7]
TAGS = {7: [1, 2, 2], 3: [], 5: [4]}


def written(folder: Path, **changed: pa.Array) -> Path:
    columns = {
        "request": pa.array(REQUEST), "tags": pa.array([TAGS[r] for r in REQUEST], pa.list_(pa.int64())),
        "words": pa.array([[1], [2, 3], [], [4], [5, 6, 7], [8]]), "price": pa.array([[x / 7] for x in range(6)]),
        "click": pa.array([0.0, 1, 1, 0, 0, 1]),
    }  # fmt: skip
    parquet.write_table(pa.table(columns | changed), folder / "log.parquet")
    return folder / "log.parquet"


def log_of(path: Path, jagged: tuple[str, ...] = ("tags", "words")) -> ImpressionLog:
    return ImpressionLog.from_parquet(path, request="request", context=["tags"], targets=["click"], jagged=jagged)


def test_batches_of_a_log_have_the_gradients_of_rows(tmp_path: Path):
    log = log_of(written(tmp_path))
    context, candidate, impressions = log[0]  # requests stand as they first come
    assert (context["tags"].values[0].tolist(), context["tags"].lengths.tolist()) == (TAGS[7], [3])
    assert candidate["words"].lengths.tolist() == [1, 0, 1] and impressions == 3
    model = Normed()
    step = group(model)
    (batch,) = DataLoader(log, batch_sampler=RequestBatches(log, 6), collate_fn=log.collate)
    args, kwargs = step.interface.call(batch.rows())
    found = []
    for scores in (step(**batch.inputs, request_offsets=batch.request_offsets), model(*args, **kwargs)):
        model.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(scores, batch.targets["click"]).backward()
        found.append([p.grad.to_dense() for p in model.parameters()])
    for name, one, other in zip(dict(model.named_parameters()), *found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


def test_bags_of_a_log_are_checked(tmp_path: Path):
    for tags in ([[1, 2, 2], [], [1, 2], [4], [], [1, 2, 2]], [[1, 2, 2], [], [1, 9, 2], [4], [], [1, 2, 2]]):
        with pytest.raises(
            InputError, match="context column 'tags' is not the same in all rows of a request: rows 0 and 2"
        ):
            log_of(written(tmp_path, tags=pa.array(tags, pa.list_(pa.int64()))))
    path = written(tmp_path)
    with pytest.raises(InputError, match="'words' holds lists of 0 to 3 values: name it in jagged"):
        log_of(path, ("tags",))
    with pytest.raises(InputError, match="column 'click' holds double, expected lists"):
        log_of(path, ("tags", "words", "click"))
    with pytest.raises(InputError, match="no column 'ids'"):
        log_of(path, ("tags", "words", "ids"))
    with pytest.raises(InputError, match="column 'tags' holds bags"):
        ImpressionLog({"tags": bags((1, 2))}, request="tags", context=[])
