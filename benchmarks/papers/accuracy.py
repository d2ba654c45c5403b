"""RAD Table 3, accuracy (arXiv 2605.27450): DCNv2, rDCN, and rDCN without its context stream, after equal tuning.

    python -m benchmarks.papers.accuracy [--reduced] [--movielens FOLDER] [--out benchmarks/results]

Each model is tuned on each data set over the same grid of learning rate and weight decay with one seed, by validation
log loss; then trained with further seeds, the same for every model, and measured on the later test rows. What is
compared is the log loss on top of DCNv2's, seed by seed; DCNv2's noise is the standard deviation over its seeds. Where
tuning chose another point for a model than for DCNv2, it is trained at DCNv2's too: one seed may choose by luck.

A run that breaks off goes on where it was when called again on the same day. Nothing here is a timing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rankhoist.bench.plots import COLOURS, pyplot
from rankhoist.compiler.targets.machine import machine
from rankhoist.lab.data import RankingData, generate_request_log, load_movielens
from rankhoist.lab.train import Settings, bayes_log_loss, build_model, train

MODELS = {"dcnv2": "DCNv2", "rdcn": "rDCN", "rdcn-fixed": "rDCN without context stream"}
BASE, CHANGED, ABLATED = MODELS
STYLES = {BASE: ("full", "o"), CHANGED: ("compile", "s"), ABLATED: ("linear", "^")}  # colour and marker in the plot
TUNING_SEED = 100
BESIDE, ALONE = (128,), ()  # hidden layers of the MLP beside the cross network
SCALE = 0.25  # of the widths of `rankhoist demo`: 104 context and 38 candidate columns


@dataclass(frozen=True)
class Size:
    """How much is run."""

    rows: int
    users: int
    items: int
    rates: tuple[float, ...]
    decays: tuple[float, ...]
    seeds: int
    epochs: int


FULL = Size(50_000, 25, 125, (1e-3, 4e-3, 1.6e-2), (0.03, 0.3), 5, 4)
REDUCED = Size(15_000, 15, 100, (4e-3, 1.6e-2), (0.1,), 3, 2)
RESULTS, REDUCED_RESULTS = Path("benchmarks/results"), Path("runs/papers")
COMMAND = "python -m benchmarks.papers.accuracy"


@dataclass(frozen=True)
class Case:
    """A data set, and whether an MLP stands beside the cross network (which can learn what that leaves out)."""

    name: str
    load: Callable[[], RankingData]
    hidden: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One training run: what was asked for, and what came of it (log losses in nats per row)."""

    case: str
    model: str
    learning_rate: float
    weight_decay: float
    seed: int
    validation_log_loss: float
    log_loss: float
    auc: float
    calibration_error: float
    predicted_over_observed: float
    epochs: float
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, and write the results after every data set."""
    options = _options(arguments)
    size = REDUCED if options.reduced else FULL
    options.out.mkdir(parents=True, exist_ok=True)
    suffix = "-reduced" if options.reduced else ""
    stem = options.out / f"{datetime.now(timezone.utc):%Y-%m-%d}-papers-accuracy{suffix}"
    record = _begun(stem, size, options)
    folder = options.movielens if options.movielens.is_dir() else None
    if folder is None:
        print(f"MovieLens is left out: no folder {options.movielens} (--movielens FOLDER)")
    for case in cases(size, folder):
        data = case.load()
        for run in measured(case, data, size, [Run(**run) for run in record["runs"]]):
            record["runs"].append(asdict(run))
            record["minutes"] += run.seconds / 60
            _write(record, stem)
            print(f"{run.case}: {run.model}, learning rate {run.learning_rate:g}, weight decay {run.weight_decay:g}, "
                  f"seed {run.seed}: log loss {run.log_loss:.5f} in {run.seconds:.0f} s", flush=True)  # fmt: skip
        record["cases"][case.name] = {"data": data.source, "bayes_log_loss": bayes_log_loss(data)}
        _write(record, stem)
        summaries = summarise(record)
        stem.with_suffix(".md").write_text(table(record, summaries, stem))
        draw(summaries, stem.with_suffix(".svg"))
    print(table(record, summaries, stem))
    return 0


def cases(size: Size, movielens: Path | None) -> Iterator[Case]:
    """The data sets, from the ordinary to those made to tell the models apart."""
    log = partial(generate_request_log, size.rows, users=size.users, items=size.items)
    yield Case("request log, MLP beside", log, BESIDE)
    if movielens is not None:
        yield Case("MovieLens, MLP beside", partial(load_movielens, movielens), BESIDE)
    yield Case("request log, cross alone", log, ALONE)
    yield Case("third order, cross alone", partial(log, third=1.0), ALONE)
    yield Case("fourth order, cross alone", partial(log, fourth=1.0), ALONE)
    if movielens is not None and size is FULL:
        yield Case("MovieLens, cross alone", partial(load_movielens, movielens), ALONE)


def measured(case: Case, data: RankingData, size: Size, known: list[Run]) -> Iterator[Run]:
    """The runs of a case that are not known yet: for each model the grid, then the seeds at the best of it."""

    def runs(model: str, points: Sequence[tuple[float, float]], seeds: Sequence[int]) -> Iterator[Run]:
        for (rate, decay), seed in product(points, seeds):
            wanted = (case.name, model, rate, decay, seed)
            if not any(_key(run) == wanted for run in known):
                known.append(_trained(case, data, model, rate, decay, seed, size.epochs))
                yield known[-1]

    for model in MODELS:
        yield from runs(model, list(product(size.rates, size.decays)), [TUNING_SEED])
        points = {best_point(case.name, tuned, known) for tuned in (model, BASE)}
        yield from runs(model, sorted(points), range(size.seeds))


def best_point(case: str, model: str, runs: Sequence[Run]) -> tuple[float, float]:
    """Learning rate and weight decay of the lowest validation log loss in tuning."""
    tuned = [run for run in runs if (run.case, run.model, run.seed) == (case, model, TUNING_SEED)]
    best = min(tuned, key=lambda run: run.validation_log_loss)
    return best.learning_rate, best.weight_decay


def summarise(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry per data set and model: means and standard errors over seeds, and the difference from DCNv2."""
    runs = [Run(**run) for run in record["runs"]]
    found = []
    for case in record["cases"]:
        points = {model: best_point(case, model, runs) for model in MODELS}
        base = _final(case, BASE, points[BASE], runs)
        for model, point in points.items():
            own, beside = (_final(case, model, at, runs) for at in (point, points[BASE]))
            differences = _differences(own, base)
            found.append({
                "case": case, "model": model, "point": point, "noise": statistics.stdev(run.log_loss for run in base),
                "log_loss": mean([run.log_loss for run in own]), "auc": mean([run.auc for run in own]),
                "calibration_error": mean([run.calibration_error for run in own]),
                "predicted_over_observed": mean([run.predicted_over_observed for run in own]),
                "differences": differences, "difference": mean(differences),
                "difference_at_base_point": mean(_differences(beside, base)),
            })  # fmt: skip
    return found


def _differences(runs: Sequence[Run], base: Sequence[Run]) -> list[float]:
    return [run.log_loss - other.log_loss for run, other in zip(runs, base, strict=True)]


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def table(record: dict[str, Any], summaries: Sequence[dict[str, Any]], stem: Path) -> str:
    """The results as Markdown."""
    size = record["size"]
    lines = [
        "# RAD Table 3, accuracy: DCNv2, rDCN, rDCN without context stream", "",
        f"{record['date']}, {record['minutes']:.0f} minutes of training on {record['machine']['processor']}, "
        f"torch {record['machine']['torch']}. Command: `{record['command']}`", "",
        f"{size['seeds']} seeds after tuning over learning rate {_list(size['rates'])} and weight decay "
        f"{_list(size['decays'])}, one seed, by validation log loss, at most {size['epochs']} epochs. Mean ± standard "
        "error over seeds, on the latest tenth of the rows. Difference: log loss minus that of DCNv2 with the same "
        "seed, in thousandths of a nat, each model as tuned, and both at DCNv2's learning rate and weight decay; "
        "noise: standard deviation of DCNv2's log loss over seeds, same unit. ECE: expected calibration error.", "",
        "| data | model | rate, decay | log loss | AUC | ECE | predicted/observed | difference | at DCNv2's | noise |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for entry in summaries:
        cells = [
            entry["case"], MODELS[entry["model"]], _list(entry["point"]),
            _pm(entry["log_loss"], 4), _pm(entry["auc"], 4), f"{entry['calibration_error'][0]:.4f}",
            f"{entry['predicted_over_observed'][0]:.3f}",
            *("" if entry["model"] == BASE else _pm([1e3 * value for value in entry[name]], 1)
              for name in ("difference", "difference_at_base_point")),
            f"{1e3 * entry['noise']:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    known = {name: case["bayes_log_loss"] for name, case in record["cases"].items() if case["bayes_log_loss"]}
    limits = "; ".join(f"{name}: {value:.4f}" for name, value in known.items())
    plot = f"![Log loss on top of that of DCNv2, by seed]({stem.name}.svg)"
    return "\n".join([*lines, "", f"Log loss of the generator's own probabilities: {limits}.", "", plot, ""])


def draw(summaries: Sequence[dict[str, Any]], path: Path) -> None:
    """Log loss on top of DCNv2's, a dot per seed and a line at the mean, with DCNv2's noise as a band."""
    plt = pyplot()
    names = list(dict.fromkeys(entry["case"] for entry in summaries))
    figure, axes = plt.subplots(1, len(names), figsize=(2.7 * len(names), 3), squeeze=False, layout="constrained")
    for ax, name in zip(axes.flat, names, strict=True):
        own = [entry for entry in summaries if entry["case"] == name]
        ax.axhspan(-1e3 * own[0]["noise"], 1e3 * own[0]["noise"], color=COLOURS["expand"], alpha=0.25, linewidth=0)
        ax.axhline(0, color="black", linewidth=0.8)
        for place, entry in enumerate(entry for entry in own if entry["model"] != BASE):
            colour, marker = STYLES[entry["model"]]
            values = [1e3 * value for value in entry["differences"]]
            ax.plot([place] * len(values), values, marker, color=COLOURS[colour], markersize=4, alpha=0.6, linewidth=0)
            ax.hlines(1e3 * entry["difference"][0], place - 0.25, place + 0.25, color=COLOURS[colour], linewidth=2)
        ax.set_xticks([0, 1], ["rDCN", "no stream"])
        ax.set(title=name.replace(", ", ",\n"), xlim=(-0.6, 1.6))
    axes.flat[0].set_ylabel("log loss minus DCNv2's, 1e-3 nats")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _trained(case: Case, data: RankingData, model: str, rate: float, decay: float, seed: int, epochs: int) -> Run:
    settings = Settings(epochs=epochs, learning_rate=rate, weight_decay=decay, evaluations=2, patience=2, seed=seed)
    result = train(build_model(model, data, seed, scale=SCALE, hidden=case.hidden), data, settings, progress=False)
    test = result.test
    return Run(
        case.name, model, rate, decay, seed, result.validation.log_loss, test.log_loss, test.auc,
        test.calibration.error, test.calibration.ratio, result.best_epoch, result.seconds,
    )  # fmt: skip


def _final(case: str, model: str, point: tuple[float, float], runs: Sequence[Run]) -> list[Run]:
    """The runs of a model at one point, but for that of tuning, by seed."""
    own = [run for run in runs if _key(run)[:4] == (case, model, *point) and run.seed != TUNING_SEED]
    return sorted(own, key=lambda run: run.seed)


def _key(run: Run) -> tuple[str, str, float, float, int]:
    return run.case, run.model, run.learning_rate, run.weight_decay, run.seed


def _write(record: dict[str, Any], stem: Path) -> None:
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


def _begun(stem: Path, size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """What an earlier call of the same size on the same day left, or an empty record."""
    path = stem.with_suffix(".json")
    flags = [*(["--reduced"] if options.reduced else []), "--movielens", options.movielens.name]
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "command": " ".join([COMMAND, *flags]),
        "machine": machine(), "size": json.loads(json.dumps(asdict(size))), "minutes": 0.0, "cases": {}, "runs": [],
    }  # fmt: skip
    if path.exists() and (found := json.loads(path.read_text()))["size"] == record["size"]:
        record |= {name: found[name] for name in ("minutes", "runs")}
    return record


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _pm(value: Sequence[float], digits: int) -> str:
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reduced", action="store_true", help="a few minutes: smaller data, grid and epochs")
    parser.add_argument(
        "--movielens", metavar="FOLDER", type=Path, default=Path("ml-latest-small"),
        help="a MovieLens folder as published; left out where there is none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", type=Path, help=f"default: {RESULTS}, reduced: {REDUCED_RESULTS}")
    options = parser.parse_args(arguments)
    options.out = options.out or (REDUCED_RESULTS if options.reduced else RESULTS)
    return options


if __name__ == "__main__":
    sys.exit(main())
