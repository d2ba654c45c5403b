"""How good scores are: order (AUC), probability (log loss), and whether predicted rates are those observed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Array = Tensor | npt.NDArray[np.generic]

BINS = 10  # of the calibration, with an equal number of rows each


@dataclass(frozen=True)
class Bin:
    """Rows of similar score: how many, their mean predicted probability and the share of them that is positive."""

    rows: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed rates.

    error  expected calibration error: the mean of |predicted - observed| over `bins`, weighted by rows
    ratio  mean predicted probability / share of positives; 1 is right, nan without positives
    """

    error: float
    ratio: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Metrics:
    """AUC, mean log loss in nats per row, and calibration of some rows."""

    auc: float
    log_loss: float
    calibration: Calibration


def evaluate(labels: Tensor, logits: Tensor) -> Metrics:
    """The metrics of logits `[rows]` for labels `[rows]` of 0 and 1."""
    return Metrics(auc(labels, logits), log_loss(labels, logits), calibration(labels, logits.sigmoid()))


def auc(labels: Array, scores: Array) -> float:
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


def calibration(labels: Tensor, probabilities: Tensor, bins: int = BINS) -> Calibration:
    """Labels and probabilities `[rows]`; bins of equal row counts by rising probability, fewer where rows are few.

    Bins of equal width, the other custom, would leave nearly all rows in one of them where positives are rare.
    Source of the error: Mahdi Pakdaman Naeini, Gregory F. Cooper, Milos Hauskrecht, "Obtaining Well Calibrated
    Probabilities Using Bayesian Binning", AAAI 2015.
    """
    order = probabilities.argsort(stable=True)
    predicted, observed = probabilities[order].double(), labels[order].double()
    parts = zip(torch.tensor_split(predicted, bins), torch.tensor_split(observed, bins), strict=True)
    table = tuple(Bin(len(p), float(p.mean()), float(o.mean())) for p, o in parts if len(p))
    error = sum(part.rows * abs(part.predicted - part.observed) for part in table) / max(len(labels), 1)
    positives = float(observed.sum())
    return Calibration(error, float(predicted.sum()) / positives if positives else float("nan"), table)
