"""A model trained with several seeds: results with standard errors, learning curves, and the best model as files.

The folder of a run holds

    seed-N/checkpoint.pt   while seed N is being trained: a run that breaks off goes on from here
    seed-N/result.json     what came of seed N
    seed-N/weights.safetensors
    results.json, results.md, curves.svg
    model.pt2              the seed with the lowest validation log loss, as a torch.export archive
    model.rankhoist        the same, hoisted, with its certificate (if asked for)
"""

from __future__ import annotations

import io
import json
import math
import shutil
import statistics
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import nn

from rankhoist.compiler.targets.machine import machine
from rankhoist.errors import TrainingError
from rankhoist.hoist import hoist
from rankhoist.lab.data import LabelledRows
from rankhoist.lab.train.curves import draw
from rankhoist.lab.train.loop import Point, Settings, TrainResult, bayes_auc, bayes_log_loss, train
from rankhoist.lab.train.metrics import Bin, Calibration, Metrics
from rankhoist.lab.train.models import build_model
from rankhoist.runtime.whole import written
from rankhoist.verify import verify

FILES = ("results.json", "results.md", "curves.svg", "model.pt2", "model.rankhoist")


@dataclass(frozen=True)
class Options:
    """What to train, how often, and where the results go; `settings.seed` is the first seed."""

    model: str
    out: Path
    settings: Settings
    seeds: int = 5
    scale: float = 1.0
    plots: bool = True
    hoisted: bool = False


def run(options: Options, data: LabelledRows, console: Console) -> bool:
    """Train what is missing in `options.out`, write everything; returns False if the hoisted model differs.

    Raises:
        TrainingError: the folder holds another run.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = [replace(options.settings, seed=options.settings.seed + n) for n in range(options.seeds)]
    results = [_trained(options, settings, data, console) for settings in seeds]
    record = _record(options, data, results)
    _write(options.out / "results.json", json.dumps(record, indent=1) + "\n")
    _write(options.out / "results.md", _markdown(record))
    console.print(_table(record))
    if options.plots:
        draw(results, f"{options.model}, {data.source}", options.out / "curves.svg")
    best = min(range(len(results)), key=lambda n: results[n].validation.log_loss)
    return _save_model(options, seeds[best], data, console)


def _trained(options: Options, settings: Settings, data: LabelledRows, console: Console) -> TrainResult:
    """The result of one seed: read if it is there, else trained, from where an earlier run stopped."""
    folder = _folder(options, settings)
    folder.mkdir(exist_ok=True)
    path, identity = folder / "result.json", _identity(options, settings, data)
    if path.exists():
        result = _read(path, identity)
        state = "already there"
    else:
        model = build_model(options.model, data, settings.seed, scale=options.scale)
        result = train(model, data, settings, checkpoint=folder / "checkpoint.pt")
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, _weights(folder))
        _write(path, json.dumps({"identity": identity, **asdict(result)}, indent=1) + "\n")
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        state = f"{result.curve[-1].epoch:g} epochs in {result.seconds:.0f} s"
    console.print(
        f"seed {settings.seed}: {state}; best after {result.best_epoch:g}, "
        f"test AUC {result.test.auc:.4f}, log loss {result.test.log_loss:.4f}"
    )
    return result


def _save_model(options: Options, settings: Settings, data: LabelledRows, console: Console) -> bool:
    """The model of one seed as an archive and, if asked for, hoisted; whether scores are equal."""
    model = build_model(options.model, data, settings.seed, scale=options.scale)
    model.load_state_dict(load_file(_weights(_folder(options, settings))))
    archive = options.out / "model.pt2"
    export(model.eval(), data, archive)
    context = " ".join(f"--context {name}" for name in data.context)
    console.print(f"the model of seed {settings.seed} is {archive}; hoist it:")
    console.print(f"  rankhoist hoist {archive} {context}", soft_wrap=True, highlight=False)
    if not options.hoisted:
        return True
    hoisted = hoist(model, (data.example(64),), context=list(data.context), dynamic=dict.fromkeys(data.varying, 1))
    certificate = verify(hoisted, model, seed=settings.seed)
    console.print(str(certificate))
    if certificate:
        hoisted.save(options.out / "model.rankhoist", certificate)
        console.print(f"hoisted: {options.out / 'model.rankhoist'}")
    return bool(certificate)


def clear(out: Path) -> None:
    """Remove what runs leave in a folder, and nothing else.

    Raises:
        TrainingError: something cannot be removed.
    """
    for path in [*out.glob("seed-*"), *(out / name for name in FILES)]:
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(f"{path} cannot be removed: {error.strerror or error}") from error


def export(model: nn.Module, data: LabelledRows, path: Path) -> None:
    """A trained model as a torch.export archive with a symbolic row count, and with made-up rows for an example.

    Without stack traces, which name the files of the machine that it was trained on.
    """
    example = data.made_up(64)
    rows = torch.export.Dim("rows", min=2, max=2**24)
    lengths = {name: {1: torch.export.Dim(f"length_{i}", min=0)} for i, name in enumerate(data.varying)}
    shapes = {name: {0: rows, **lengths.get(name, {})} for name in example}
    exported = torch.export.export(model, (example,), dynamic_shapes=(shapes,))
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)
    archive = io.BytesIO()
    torch.export.save(exported, archive)
    _write_small(archive, path)


def _write_small(archive: IO[bytes], path: Path) -> None:
    """An archive with all but its weights compressed: of a small model, torch's graph is larger than the weights."""
    with zipfile.ZipFile(archive) as plain, zipfile.ZipFile(path, "w") as small:
        for member in plain.infolist():
            kept = "/weights/" in member.filename and not member.filename.endswith(".json")
            method = zipfile.ZIP_STORED if kept else zipfile.ZIP_DEFLATED
            small.writestr(member, plain.read(member), compress_type=method)


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, which one value does not have."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def _folder(options: Options, settings: Settings) -> Path:
    return options.out / f"seed-{settings.seed}"


def _weights(folder: Path) -> Path:
    return folder / "weights.safetensors"


def _identity(options: Options, settings: Settings, data: LabelledRows) -> dict[str, Any]:
    """What must be the same for a result to be of this run."""
    return {
        "model": options.model, "scale": options.scale, "settings": asdict(settings),
        "data": data.source, "rows": len(data.labels), "features": [asdict(feature) for feature in data.schema],
    }  # fmt: skip


def _read(path: Path, identity: dict[str, Any]) -> TrainResult:
    found = json.loads(path.read_text(encoding="utf-8"))
    saved = found.pop("identity")
    if saved != identity:
        differing = ", ".join(key for key in identity if saved.get(key) != identity[key])
        raise TrainingError(f"{path.parent} holds a run with other {differing}; choose another folder, or --fresh")
    curve = tuple(Point(**point) for point in found["curve"])
    validation, test = _metrics(found["validation"]), _metrics(found["test"])
    return TrainResult(validation, test, curve, found["best_epoch"], found["seconds"])


def _metrics(found: dict[str, Any]) -> Metrics:
    shape = found["calibration"]
    bins = tuple(Bin(**part) for part in shape["bins"])
    return Metrics(found["auc"], found["log_loss"], Calibration(shape["error"], shape["ratio"], bins))


def _record(options: Options, data: LabelledRows, results: Sequence[TrainResult]) -> dict[str, Any]:
    measures = {
        "validation AUC": [r.validation.auc for r in results],
        "validation log loss": [r.validation.log_loss for r in results],
        "test AUC": [r.test.auc for r in results],
        "test log loss": [r.test.log_loss for r in results],
        "test calibration error": [r.test.calibration.error for r in results],
        "test predicted / observed": [r.test.calibration.ratio for r in results],
        "epochs": [r.best_epoch for r in results],
        "seconds": [r.seconds for r in results],
    }
    best = {"test AUC": bayes_auc(data), "test log loss": bayes_log_loss(data)}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": machine(),
        "model": options.model, "scale": options.scale, "settings": asdict(options.settings), "seeds": len(results),
        "data": data.source, "rows": len(data.labels),
        "measures": {name: dict(zip(("mean", "standard_error"), mean(values), strict=True)) | {"values": values}
                     for name, values in measures.items()},
        "best_possible": {name: value for name, value in best.items() if value is not None},
    }  # fmt: skip


def _cells(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Measure, mean ± standard error, and the best possible, as text."""
    found = []
    for name, measure in record["measures"].items():
        digits = 1 if name in ("epochs", "seconds") else 4
        error = measure["standard_error"]
        spread = "" if error is None else f" ± {error:.{digits}f}"
        limit = record["best_possible"].get(name)
        found.append((name, f"{measure['mean']:.{digits}f}{spread}", "" if limit is None else f"{limit:.4f}"))
    return found


def _title(record: dict[str, Any]) -> str:
    seeds = "one seed" if record["seeds"] == 1 else f"mean ± standard error of {record['seeds']} seeds"
    return f"{record['model']} on {record['data']}: {seeds}"


def _table(record: dict[str, Any]) -> Table:
    table = Table("measure", title=_title(record))
    table.add_column("mean", justify="right")
    table.add_column("true probabilities", justify="right")
    for cells in _cells(record):
        table.add_row(*cells)
    return table


def _markdown(record: dict[str, Any]) -> str:
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["settings"].items())
    rows = "".join(f"| {' | '.join(cells)} |\n" for cells in _cells(record))
    return (
        f"# {_title(record)}\n\n{record['date']}, {record['rows']:,} rows, scale {record['scale']:g}, {settings}; "
        f"torch {record['machine']['torch']}.\n\n| measure | mean | true probabilities |\n|---|---:|---:|\n{rows}"
    )


def _write(path: Path, text: str) -> None:
    with written(path) as file:
        file.write(text.encode())
