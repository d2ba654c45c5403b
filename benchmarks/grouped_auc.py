"""Ranking by models trained on whole requests, as rows and grouped: `python benchmarks/grouped_auc.py --out FILE`.

The same seeds, and so the same batches and the same first weights. What is left between the two is rounding: gradients
are equal, not bit by bit. Beside them training on rows that are shuffled one by one, which is another algorithm.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rankhoist.cli.arguments import write_json
from rankhoist.compiler.targets.machine import machine
from rankhoist.lab.data import RankingData, generate_request_log, load_folder
from rankhoist.lab.train import Settings, build_model, train
from rankhoist.lab.train.loop import TrainResult

KINDS = {"grouped": "requests, context once each", "requests": "requests, as rows", "rows": "rows, one by one"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a folder of MovieLens or KuaiRand (default: generated requests)")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--model", default="dcnv2")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True, help="where the results go, without an ending")
    args = parser.parse_args()
    data = load_folder(args.data, args.rows) if args.data else generate_request_log(args.rows)
    results = {kind: _trained(args, data, kind) for kind in KINDS}
    requests = len(data.request_offsets) - 1
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": machine(), "data": data.source,
        "rows": len(data.labels), "requests": requests, "model": args.model, "scale": args.scale,
        "results": {kind: [asdict(result) for result in made] for kind, made in results.items()},
    }  # fmt: skip
    write_json(str(args.out.with_suffix(".json")), record)
    args.out.with_suffix(".md").write_text(_markdown(record, results))
    _draw(results, f"{args.model}, {data.source}", args.out.with_suffix(".svg"))
    print(args.out.with_suffix(".md").read_text())


def _trained(args: argparse.Namespace, data: RankingData, kind: str) -> list[TrainResult]:
    made = []
    for seed in range(args.seeds):
        settings = Settings(epochs=args.epochs, seed=seed, evaluations=4, patience=4 * args.epochs, batches=kind)
        made.append(train(build_model(args.model, data, seed, scale=args.scale), data, settings))
        print(f"{kind}, seed {seed}: test AUC {made[-1].test.auc:.4f}, {made[-1].seconds:.0f} s", flush=True)
    return made


def _markdown(record: dict[str, Any], results: dict[str, list[TrainResult]]) -> str:
    lines = [
        f"# Training on requests: {record['model']} on {record['data']}\n",
        f"{record['date']}, {record['rows']:,} rows of {record['requests']:,} requests, "
        f"{len(results['rows'])} seeds, torch {record['machine']['torch']}.\n",
        "| batches of | test AUC | test log loss | seconds |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for kind, made in results.items():
        measures = ([r.test.auc for r in made], [r.test.log_loss for r in made], [r.seconds for r in made])
        cells = [_spread(values, digits) for values, digits in zip(measures, (4, 4, 0), strict=True)]
        lines.append(f"| {KINDS[kind]} | {' | '.join(cells)} |")
    apart = [abs(a.test.auc - b.test.auc) for a, b in zip(results["grouped"], results["requests"], strict=True)]
    lines.append(f"\nSeed by seed, the AUC of the first two is at most {max(apart):.5f} apart.\n")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"


def _draw(results: dict[str, list[TrainResult]], title: str, path: Path) -> None:
    """Mean validation log loss by epochs done."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6))
    for (kind, made), style in zip(results.items(), ("-", "--", ":"), strict=True):
        curves = [[point.validation_loss for point in r.curve] for r in made]
        epochs = [point.epoch for point in made[0].curve]
        axes.plot(epochs, [statistics.fmean(values) for values in zip(*curves, strict=True)], style, label=KINDS[kind])
    axes.set(xlabel="epochs", ylabel="validation log loss", title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
