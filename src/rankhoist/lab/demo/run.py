"""The main job: data, two trained rankers, hoisting, proof, a top ten, and what was saved."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from rankhoist.bench import interleaved
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.targets.machine import machine
from rankhoist.hoist import hoist_program
from rankhoist.lab.data import RankingData, Request, generate_request_log, load_folder
from rankhoist.lab.train import Settings, bayes_auc, build_model, train
from rankhoist.lab.train.run import export
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.threads import torch_threads
from rankhoist.verify import verify

MODEL_NAMES = ("dcnv2", "deepfm")
SECONDS_OF_TIMING = 6.0
REQUEST = "request.json"


def main(data: str | None = None, out: str = "runs/demo", seed: int = 0, candidates: int = 1000) -> int:
    """Everything `make demo` shows; returns 0 if all certificates passed, else 1.

    Args:
        data: a MovieLens or KuaiRand folder as published, or `None` for the seeded request log.
        out: folder for the models (as trained: `.pt2`, hoisted: `.rankhoist`), the certificates and the table
            (`demo.json`), none of which holds a row of the data; and for a request as it is in the data.
        seed: of the data, the weights and the choice of users.
        candidates: N of the scored requests; fewer where the catalogue is smaller.
    """
    console = Console()
    started = time.perf_counter()
    console.rule("[bold]rankhoist demo")
    ranking = load_data(data, seed, console)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    passed = True
    for name in MODEL_NAMES:
        console.rule(name)
        model = _trained(name, ranking, seed, console)
        result, equal = _hoist_and_show(name, model, ranking, folder, seed, candidates, console)
        results[name], passed = result, passed and equal
    _write(folder, ranking, results)
    _what_next(folder, ranking, console)
    console.print(f"done in {time.perf_counter() - started:.0f} s")
    return 0 if passed else 1


def load_data(data: str | None, seed: int, console: Console) -> RankingData:
    """The data set, with a line that says what it is."""
    with console.status("building the data set"):
        ranking = load_folder(data) if data else generate_request_log(seed=seed)
    console.print(
        f"{ranking.source}: {len(ranking.labels):,} rows in time order, {ranking.log.catalogue.size:,} items, "
        f"context {', '.join(ranking.context)}; candidate {', '.join(ranking.candidate)}"
    )
    return ranking


def _trained(name: str, ranking: RankingData, seed: int, console: Console) -> nn.Module:
    model = build_model(name, ranking, seed)
    result = train(model, ranking, Settings(seed=seed))
    best = bayes_auc(ranking)
    limit = f" (the generator's own probabilities reach {best:.4f})" if best is not None else ""
    console.print(
        f"trained {result.best_epoch:.0f} epochs in {result.seconds:.0f} s: "
        f"AUC {result.validation.auc:.4f} on validation, "
        f"[bold]{result.test.auc:.4f}[/bold] on the later test rows{limit}"
    )
    return model.eval()


def _hoist_and_show(
    name: str, model: nn.Module, ranking: RankingData, folder: Path, seed: int, candidates: int, console: Console
) -> tuple[dict[str, Any], bool]:
    """Hoist one model at every level, prove the best one, rank for real users, and compare."""
    request = _request(ranking, seed, candidates)
    count = len(request.items)
    with console.status("capturing and hoisting"):
        program = capture(model, (ranking.example(64),), list(ranking.context))
        levels = _levels(program, count)
    certificate = verify(levels["full"], model, seed=seed)
    console.print(str(certificate))
    _show_top(levels["full"], request, console)
    rows = _compare(model, levels, request)
    console.print(_table(rows, count))
    export(model, ranking, folder / f"{name}.pt2")
    levels["full"].save(folder / f"{name}.rankhoist", certificate)
    _save_request(request, folder / REQUEST)
    return {"certificate": certificate.to_dict(), "levels": rows}, bool(certificate)


def _request(ranking: RankingData, seed: int, candidates: int) -> Request:
    """A real user's request, with as many candidates as the catalogue can give."""
    row = ranking.draw_row(seed)
    return ranking.request(row, min(candidates, ranking.choices(row)))


def _levels(program: Program, count: int) -> dict[str, HoistedModel]:
    workload = Workload(candidates=count)
    return {level.name.lower(): hoist_program(program, workload=workload, level=level.name) for level in Level}


def _show_top(hoisted: HoistedModel, request: Request, console: Console) -> None:
    """The ten best candidates of the request."""
    with torch.inference_mode():
        scores = hoisted.score(hoisted.prepare(request.context), request.candidates).sigmoid()
    moment = datetime.fromtimestamp(request.time, timezone.utc)
    table = Table(title=f"top ten of {len(scores)} for user {request.user}, {moment:%A %Y-%m-%d %H:%M} UTC")
    table.add_column("score", justify="right")
    table.add_column("title")
    best = scores.topk(min(10, len(scores)))
    for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        table.add_row(f"{score:.3f}", request.titles[index])
    console.print(table)


def _compare(model: nn.Module, levels: dict[str, HoistedModel], request: Request) -> list[dict[str, Any]]:
    """Cost, time and worst difference of every level, timed in turn on one thread."""
    inputs = {**request.context, **request.candidates}
    with torch_threads(1), torch.inference_mode():
        truth = model(request.rows())
        worst = {n: float((h(inputs) - truth).abs().max()) for n, h in levels.items()}
        times = interleaved({n: partial(h, inputs) for n, h in levels.items()}, SECONDS_OF_TIMING)
    base = times["expand"].median
    return [
        {
            "level": name, "multiply_adds": hoisted.plan.cost.multiply_adds, "time": asdict(times[name]),
            "ratio": base / times[name].median, "worst_difference": worst[name],
        }
        for name, hoisted in levels.items()
    ]  # fmt: skip


def _table(rows: list[dict[str, Any]], count: int) -> Table:
    table = Table(title=f"one request, {count} candidates, one thread, float32")
    for column in ("level", "multiply-adds", "median ms", "speed-up", "worst difference"):
        table.add_column(column, justify="left" if column == "level" else "right")
    for row in rows:
        table.add_row(
            row["level"], f"{row['multiply_adds']:,}", f"{row['time']['median']:.2f}",
            f"{row['ratio']:.2f}x", f"{row['worst_difference']:.1e}",
        )  # fmt: skip
    return table


def _save_request(request: Request, path: Path) -> None:
    """The request as the server takes it."""
    context = {name: value[0].tolist() for name, value in request.context.items()}
    candidates = {name: value.tolist() for name, value in request.candidates.items()}
    path.write_text(json.dumps({"context": context, "candidates": candidates, "top_k": 10}))


def _write(folder: Path, ranking: RankingData, results: dict[str, Any]) -> None:
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {"date": stamp, "data": ranking.source, "machine": machine(), "models": results}
    (folder / "demo.json").write_text(json.dumps(record, indent=1))


def _what_next(folder: Path, ranking: RankingData, console: Console) -> None:
    context = " ".join(f"--context {name}" for name in ranking.context)
    console.print(f"\nmodels, certificates and the tables are in {folder}/ ; try them:")
    for command in ("report", "verify"):
        console.print(f"  rankhoist {command} {folder / MODEL_NAMES[0]}.pt2 {context}", soft_wrap=True, highlight=False)
    console.print("or serve one (pip install 'rankhoist[serve]') and let it rank:", highlight=False, markup=False)
    console.print(f"  rankhoist serve {folder / MODEL_NAMES[0]}.rankhoist", soft_wrap=True, highlight=False)
    url = f"http://127.0.0.1:8000/v1/models/{MODEL_NAMES[0]}/rank"
    console.print(f"  curl -d @{folder / REQUEST} {url}", soft_wrap=True, highlight=False)
    console.print(f"{REQUEST} is a request as it is in the data; the other files hold no row of it", highlight=False)
