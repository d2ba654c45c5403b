"""Learning curves of a run's seeds as a picture. Needs matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankhoist.bench.plots import COLOURS, pyplot
from rankhoist.lab.train.loop import TrainResult


def draw(results: Sequence[TrainResult], title: str, path: Path) -> None:
    """Training and validation log loss against epochs, a line per seed; a dot where the weights kept are from.

    Raises:
        ExtraError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for number, result in enumerate(results):
        epochs = [point.epoch for point in result.curve]
        validation = [point.validation_loss for point in result.curve]
        ax.plot(epochs, [point.train_loss for point in result.curve], color=COLOURS["expand"], linestyle="--",
                marker=".", label=None if number else "training")  # fmt: skip
        ax.plot(epochs, validation, color=COLOURS["full"], marker=".", label=None if number else "validation")
        kept = validation[epochs.index(result.best_epoch)]
        ax.plot([result.best_epoch], [kept], "o", color=COLOURS["full"], label=None if number else "kept")
    ax.set(title=title, xlabel="epochs", ylabel="log loss, nats per row")
    ax.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
