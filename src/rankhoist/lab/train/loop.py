"""The one training loop: AdamW with a falling learning rate, early stopping; a killed run goes on where it was."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rankhoist.compiler.algebra.workload import Workload
from rankhoist.lab.data import LabelledRows
from rankhoist.lab.train import checkpoint as checkpoints
from rankhoist.lab.train.batches import Batches, Step
from rankhoist.lab.train.metrics import Metrics, auc, evaluate, log_loss
from rankhoist.lab.train.models import seeded
from rankhoist.runtime.threads import torch_threads
from rankhoist.training import GroupedModel, grouped

EVALUATION_ROWS = 8192  # rows per call when scoring, to bound memory


@dataclass(frozen=True)
class Settings:
    """What decides a run, beside the model and the data.

    learning_rate  of the first step; it falls linearly to zero over all epochs
    weight_decay   of AdamW, times the learning rate in every step
    evaluations    per epoch, on the validation rows
    patience       evaluations without a lower validation log loss before training stops
    threads        of torch's operators. One by default: the same weights on every machine, whatever its cores, and at
                   this size threads that wait for each other on a busy machine cost far more than a second one gains
    """

    epochs: int = 2
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    evaluations: int = 1
    patience: int = 1
    seed: int = 0
    threads: int = 1
    batches: str = "rows"


@dataclass(frozen=True)
class Point:
    """One evaluation: epochs done, mean training loss since the last one, validation loss; in nats per row."""

    epoch: float
    train_loss: float
    validation_loss: float


@dataclass(frozen=True)
class TrainResult:
    """How well a model ranks; the weights kept are those of the evaluation at `best_epoch`.

    seconds  wall time, evaluation included, over all parts of a resumed run
    """

    validation: Metrics
    test: Metrics
    curve: tuple[Point, ...]
    best_epoch: float
    seconds: float


def train(
    model: nn.Module,
    data: LabelledRows,
    settings: Settings | None = None,
    *,
    progress: bool = True,
    checkpoint: Path | None = None,
    save_every: float = 30.0,
) -> TrainResult:
    """Train in place until the validation log loss stops falling; leaves the model with its best weights, in eval mode.

    Users and items seen a few times each are learnt by heart in a second or third pass at full learning rate, which is
    why it falls to zero over `epochs`; without that the early stop comes after the first pass.

    Args:
        model: takes `data.rows(...)` and returns logits `[B]`.
        checkpoint: a file to go on from if it exists, and to save to every `save_every` seconds; the weights at the
            end are those of a run that was never stopped, bit for bit.

    Raises:
        TrainingError: the checkpoint is of another run, or no checkpoint.
    """
    settings = settings or Settings()
    with seeded(settings.seed), torch_threads(settings.threads), _progress_bar(progress) as bar:
        run = _Run(model, data, settings)
        if checkpoint is not None and checkpoint.exists():
            run.restore(checkpoints.load(checkpoint, run.identity()))
        task = bar.add_task(type(model).__name__, total=run.last_step, completed=run.step, loss=float("nan"))
        saved = time.perf_counter()
        while not run.finished:
            run.advance()
            bar.update(task, completed=run.step, loss=run.curve[-1].validation_loss if run.curve else float("nan"))
            if checkpoint is not None and time.perf_counter() - saved >= save_every:
                checkpoints.save(checkpoint, run.identity(), run.state())
                saved = time.perf_counter()
        return run.result()


def predict(model: nn.Module, data: LabelledRows, rows: slice) -> Tensor:
    """Logits `[rows]` of a row range, in eval mode."""
    model.eval()
    start, stop, _ = rows.indices(len(data.labels))
    with torch.inference_mode():
        parts = [
            model(data.rows(slice(first, min(first + EVALUATION_ROWS, stop))))
            for first in range(start, stop, EVALUATION_ROWS)
        ]
        return torch.cat(parts)


def bayes_auc(data: LabelledRows) -> float | None:
    """The test AUC of the true probabilities, the best any model can reach; None where the truth is unknown."""
    if data.true_probability is None:
        return None
    return auc(data.labels[data.test], data.true_probability[data.test])


def bayes_log_loss(data: LabelledRows) -> float | None:
    """The test log loss of the true probabilities; None where the truth is unknown."""
    if data.true_probability is None:
        return None
    return log_loss(data.labels[data.test], data.true_probability[data.test].logit())


class _Run:
    """A run between two steps: `state` is all that decides the steps to come."""

    def __init__(self, model: nn.Module, data: LabelledRows, settings: Settings) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.started = time.perf_counter()
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.batches = Batches(data, settings.batches, settings.batch_size, settings.seed)
        self.steps_per_epoch = len(self.batches)
        self.last_step = settings.epochs * self.steps_per_epoch
        self.schedule = torch.optim.lr_scheduler.LinearLR(
            self.optimizer, 1.0, 1.0 / self.last_step, total_iters=self.last_step
        )
        self.step = 0
        self.losses: list[float] = []  # of the steps since the last evaluation
        self.curve: list[Point] = []
        self.best = 0  # index in the curve
        self.best_weights = copy.deepcopy(model.state_dict())
        self.grouped = self._grouped() if settings.batches == "grouped" else None

    def _grouped(self) -> GroupedModel:
        """The same parameters, for batches of the usual size."""
        workload = Workload(self.settings.batch_size, self.batches.size)
        return grouped(self.model.train(), (self.data.example(),), context=list(self.data.context), workload=workload)

    @property
    def finished(self) -> bool:
        """Whether all steps are done or validation has stopped improving."""
        return self.step == self.last_step or len(self.curve) - 1 - self.best >= self.settings.patience

    def advance(self) -> None:
        """One step, and an evaluation where one is due."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        step = self.batches.at(epoch, position)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = binary_cross_entropy_with_logits(self._scores(step), self.data.labels[step.rows])
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        self.step += 1
        parts = self.settings.evaluations
        if (position + 1) * parts // self.steps_per_epoch > position * parts // self.steps_per_epoch:
            self._evaluate()

    def _evaluate(self) -> None:
        validation = log_loss(
            self.data.labels[self.data.validation], predict(self.model, self.data, self.data.validation)
        )
        self.curve.append(Point(self.step / self.steps_per_epoch, sum(self.losses) / len(self.losses), validation))
        self.losses = []
        if validation <= min(point.validation_loss for point in self.curve):
            self.best, self.best_weights = len(self.curve) - 1, copy.deepcopy(self.model.state_dict())

    def _scores(self, step: Step) -> Tensor:
        if self.grouped is None or step.offsets is None:
            scores: Tensor = self.model(self.data.rows(step.rows))
            return scores
        context, first = self.data.context, step.rows[step.offsets[:-1]]
        inputs = {name: x[first if name in context else step.rows] for name, x in self.data.features.items()}
        scores = self.grouped(inputs, request_offsets=step.offsets)
        return scores

    def result(self) -> TrainResult:
        """The model gets its best weights and is measured."""
        self.model.load_state_dict(self.best_weights)
        parts = self.data.validation, self.data.test
        validation, test = (evaluate(self.data.labels[part], predict(self.model, self.data, part)) for part in parts)
        seconds = time.perf_counter() - self.started
        return TrainResult(validation, test, tuple(self.curve), self.curve[self.best].epoch, seconds)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be of this run."""
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        data = {"source": self.data.source, "rows": len(self.data.labels), "likes": int(self.data.labels.sum())}
        return {"settings": asdict(self.settings), "data": data, "weights": shapes}

    def state(self) -> dict[str, Any]:
        """All that decides the steps to come, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "step": self.step,
            "losses": self.losses,
            "curve": [astuple(point) for point in self.curve],
            "best": self.best,
            "best_weights": self.best_weights,
            "seconds": time.perf_counter() - self.started,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        self.step, self.losses = state["step"], state["losses"]
        self.curve = [Point(*point) for point in state["curve"]]
        self.best, self.best_weights = state["best"], state["best_weights"]
        self.started = time.perf_counter() - state["seconds"]


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
