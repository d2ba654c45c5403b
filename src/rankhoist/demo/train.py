"""Build a ranking model for a data set and train it in about a minute on two cores."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rankhoist.data import Feature, RankingData
from rankhoist.nn import DCNv2, DeepFM, Field

ModelName = Literal["dcnv2", "deepfm"]
MODEL_NAMES: tuple[ModelName, ...] = ("dcnv2", "deepfm")

DCNV2_WIDTHS = {"user": 64, "item": 64, "genre": 48, "hour": 32, "weekday": 32, "year": 16, "": 24}
DEEPFM_WIDTH = 40
EVALUATION_ROWS = 8192  # rows per call when scoring, to bound memory
PATIENCE = 1  # epochs without a better validation log loss before training stops


@dataclass(frozen=True)
class TrainResult:
    """How well a model ranks, in AUC and in nats per row (log loss); the weights kept are those of `best_epoch`.

    epoch_losses  validation log loss after each epoch run
    seconds       wall time, evaluation included
    """

    validation_auc: float
    validation_logloss: float
    test_auc: float
    test_logloss: float
    epoch_losses: tuple[float, ...]
    best_epoch: int
    seconds: float

    @property
    def epochs(self) -> int:
        """Epochs run."""
        return len(self.epoch_losses)


def build_model(name: str, data: RankingData, seed: int = 0) -> nn.Module:
    """An untrained `dcnv2` (context 416 columns, candidate 152) or `deepfm` (360 and 160)."""
    with _seeded(seed):
        if name == "dcnv2":
            return DCNv2([_field(feature, DCNV2_WIDTHS[feature.vocabulary]) for feature in data.schema])
        if name == "deepfm":
            return DeepFM([_field(feature, DEEPFM_WIDTH) for feature in data.schema])
    raise ValueError(f"no model named {name!r}; choose from {', '.join(MODEL_NAMES)}")


def train(
    model: nn.Module,
    data: RankingData,
    *,
    epochs: int = 2,
    batch_size: int = 512,
    seed: int = 0,
    progress: bool = True,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    threads: int = 1,
) -> TrainResult:
    """Train in place until the validation log loss stops falling; leaves the model in eval mode.

    AdamW with a learning rate that falls linearly to zero over `epochs`: users and items seen a few times each are
    learnt by heart in a second or third pass at full rate, and then the early stop comes after the first.

    One thread by default: the same weights on every machine, whatever its cores, and at this size threads that wait for
    each other on a busy machine cost far more than a second one gains on an idle one.
    """
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    steps = epochs * -(-data.train.stop // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, total_iters=steps)
    shuffle = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    best_epoch, best_state = 0, copy.deepcopy(model.state_dict())
    with _seeded(seed), _threads(threads), _progress_bar(progress) as bar:
        task = bar.add_task(type(model).__name__, total=steps, loss=float("nan"))
        for epoch in range(1, epochs + 1):
            for rows in torch.randperm(data.train.stop, generator=shuffle).split(batch_size):
                _step(model, optimizer, data, rows)
                schedule.step()
                bar.advance(task)
            losses.append(log_loss(data.labels[data.validation], predict(model, data, data.validation)))
            bar.update(task, loss=losses[-1])
            if losses[-1] <= min(losses):
                best_epoch, best_state = epoch, copy.deepcopy(model.state_dict())
            elif epoch - best_epoch >= PATIENCE:
                break
    model.load_state_dict(best_state)
    return _evaluate(model, data, tuple(losses), best_epoch, started)


def predict(model: nn.Module, data: RankingData, rows: slice) -> Tensor:
    """Logits `[rows]` of a row range, in eval mode."""
    model.eval()
    start, stop, _ = rows.indices(len(data.labels))
    with torch.inference_mode():
        parts = [
            model(data.rows(slice(first, min(first + EVALUATION_ROWS, stop))))
            for first in range(start, stop, EVALUATION_ROWS)
        ]
        return torch.cat(parts)


def auc(labels: Tensor | npt.NDArray[np.generic], scores: Tensor | npt.NDArray[np.generic]) -> float:
    """Probability that a random positive scores above a random negative, ties counting half; nan without both.

    By ranks (Mann and Whitney): `(sum of the positives' mean ranks - P (P + 1) / 2) / (P N)`, in O(n log n).
    """
    positive = np.asarray(labels).astype(bool)
    _, group, sizes = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(sizes) - (sizes - 1) / 2
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = float(mean_rank[group[positive]].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def log_loss(labels: Tensor, logits: Tensor) -> float:
    """Mean binary cross entropy in nats per row."""
    return float(binary_cross_entropy_with_logits(logits, labels))


def bayes_auc(data: RankingData) -> float | None:
    """The test AUC of the true probabilities, the best any model can reach; None where the truth is unknown."""
    if data.true_probability is None:
        return None
    return auc(data.labels[data.test], data.true_probability[data.test])


def _field(feature: Feature, width: int) -> Field:
    return Field(feature.name, feature.kind, feature.size, width, feature.vocabulary)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, data: RankingData, rows: Tensor) -> None:
    model.train()
    optimizer.zero_grad(set_to_none=True)
    binary_cross_entropy_with_logits(model(data.rows(rows)), data.labels[rows]).backward()
    optimizer.step()


def _evaluate(
    model: nn.Module, data: RankingData, losses: tuple[float, ...], best_epoch: int, started: float
) -> TrainResult:
    validation, test = predict(model, data, data.validation), predict(model, data, data.test)
    return TrainResult(
        validation_auc=auc(data.labels[data.validation], validation),
        validation_logloss=log_loss(data.labels[data.validation], validation),
        test_auc=auc(data.labels[data.test], test),
        test_logloss=log_loss(data.labels[data.test], test),
        epoch_losses=losses,
        best_epoch=best_epoch,
        seconds=time.perf_counter() - started,
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside, restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch's operators on `count` threads inside, on as many as before after."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _progress_bar(wanted: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("validation log loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
        console=console,
        disable=not (wanted and console.is_terminal),
    )
