"""TorchRec's rankers hoisted, beside themselves: `python -m benchmarks.jagged [--only NAME] [--tiny]`.

26 features of the request and 4 of the candidate, each a bag of ids with a table of its own, in float32 on one thread;
one request of 1000 candidates. Of the ids that the original reads, about 60 % are the request's. Its call holds every
bag of the request once per candidate, put under each other before the clock starts; containers are made in every call.
Layers are as wide as in TorchRec's own trainer of DLRM (facebookresearch/dlrm, torchrec_dlrm), or as in the classes'
docstrings. `by hand` is what one would write in plain PyTorch (`jagged_by_hand.py`). Scores are compared before
anything is timed. Times are those that the thread had a processor, medians and quartiles of interleaved calls: other
work on the machine changes them less than those of the wall. What varies from run to run is the original's time, whose
large temporary tensors are new pages of memory or not, as the allocator has it: with

    MALLOC_MMAP_THRESHOLD_=268435456 MALLOC_TRIM_THRESHOLD_=2147483648

before the command, glibc keeps all memory that it has had. Writes dated JSON and Markdown. Needs torchrec.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN

import rankhoist
from benchmarks import dated
from benchmarks.jagged_by_hand import by_hand
from rankhoist.capture import capture
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets.timing import interleaved
from rankhoist.hoist import hoist_program

LEVELS = ("request", "full")
GOAL = 3.0
SEARCH = 120.0  # seconds for plans: on a busy machine a search would end early and leave slower ones
ROUNDING = 1e-4  # of the largest score, in float32
Calls = Mapping[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Sizes:
    """Of inputs and tables; bags hold 0 to so many ids."""

    candidates: int = 1000
    user: int = 26
    item: int = 4
    width: int = 64
    dense: int = 13
    ids: int = 10_000
    user_bag: int = 5  # 26 * 2.5 ids of the request
    item_bag: int = 20  # 4 * 10 of the candidate, on average

    @property
    def keys(self) -> tuple[list[str], list[str]]:
        """Of the request, and of the candidate."""
        return [f"user_{i}" for i in range(self.user)], [f"item_{i}" for i in range(self.item)]

    def collection(self) -> EmbeddingBagCollection:
        """A table per feature."""
        keys = [key for side in self.keys for key in side]
        tables = [EmbeddingBagConfig(self.ids, self.width, name=f"t_{key}", feature_names=[key]) for key in keys]
        return EmbeddingBagCollection(tables=tables)

    def bags(self, side: int, rows: int, seed: int) -> KeyedJaggedTensor:
        """Bags of one side, 0 the request's and 1 the candidate's."""
        generator = torch.Generator().manual_seed(seed)
        keys, largest = self.keys[side], (self.user_bag, self.item_bag)[side]
        lengths = torch.randint(largest + 1, (len(keys) * rows,), generator=generator)
        ids = torch.randint(self.ids, (int(lengths.sum()),), generator=generator)
        return KeyedJaggedTensor(keys, ids, lengths=lengths)


TINY = Sizes(20, user=3, item=2, width=8, ids=50)


def trainer(kind: type[nn.Module], *more: int) -> Callable[[Sizes], nn.Module]:
    """Layers as TorchRec's trainer of DLRM has them; DCN's number of layers and rank."""
    return lambda s: kind(s.collection(), s.dense, [512, 256, s.width], [512, 512, 256, 1], *more)


def documented(kind: type[nn.Module], *more: int) -> Callable[[Sizes], nn.Module]:
    """Layers as the docstrings of the classes have them."""
    return lambda s: kind(s.collection(), s.dense, [20, s.width], [5, 1], *more)


MODELS: dict[str, Callable[[Sizes], nn.Module]] = {
    "DLRM": trainer(DLRM),
    "DLRM, documented": documented(DLRM),
    "DLRM_DCN": trainer(DLRM_DCN, 3, 512),
    "DLRM_DCN, rank 128": trainer(DLRM_DCN, 3, 128),
    "DLRM_DCN, documented": documented(DLRM_DCN, 2, 8),
    "DeepFM": lambda s: SimpleDeepFMNN(s.dense, s.collection(), hidden_layer_size=256, deep_fm_dimension=64),
}


def together(sizes: Sizes, user: KeyedJaggedTensor, item: KeyedJaggedTensor, rows: int) -> KeyedJaggedTensor:
    """What the original is given: the request's one bag of every key as often as there are candidates."""
    repeated = [user[key].values().repeat(rows) for key in sizes.keys[0]]
    lengths = [user.lengths().repeat_interleave(rows), item.lengths()]
    keys = [key for side in sizes.keys for key in side]
    return KeyedJaggedTensor(keys, torch.cat([*repeated, item.values()]), lengths=torch.cat(lengths))


def anew(bags: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """A container that has computed nothing of its bags yet."""
    return KeyedJaggedTensor(bags.keys(), bags.values(), lengths=bags.lengths())


def measured(name: str, sizes: Sizes, seconds: float, compiled: bool) -> dict[str, Any]:
    """Milliseconds of one call, as the model was made, by hand and at every level."""
    torch.manual_seed(0)
    model, rows = MODELS[name](sizes).eval(), sizes.candidates
    example = torch.randn(4, sizes.dense), together(sizes, sizes.bags(0, 1, 1), sizes.bags(1, 4, 2), 4)
    program = capture(model, example, ["dense_features", "user_*"], all_rules())
    dense, user, item = torch.randn(1, sizes.dense), sizes.bags(0, 1, 3), sizes.bags(1, rows, 4)
    all_dense, bags = dense.expand(rows, -1).contiguous(), together(sizes, user, item, rows)
    calls: dict[str, Callable[[], Tensor]] = {"eager": lambda: model(all_dense, anew(bags))}
    own = by_hand(model, *sizes.keys)
    calls["by hand"] = lambda: own(dense, anew(user), anew(item))
    hoisted = {level: hoist_program(program, level=level, seconds=SEARCH) for level in LEVELS}
    for level, ours in hoisted.items():
        calls[level] = lambda ours=ours: ours(dense, rankhoist.Split(anew(user), anew(item)))  # type: ignore[misc]
    refused = ""
    if compiled:
        refused = _add_compiled(calls, model, (all_dense, bags))
    with torch.no_grad():
        want = calls["eager"]()
        errors = {n: float((run() - want).abs().max() / want.abs().max()) for n, run in calls.items()}
        if max(errors.values()) > ROUNDING:
            raise SystemExit(f"{name}: scores differ: {errors}")
        times = interleaved(calls, seconds, clock=time.thread_time)
    share = user.values().numel() * rows / bags.values().numel()
    plan = hoisted["full"].plans.plans[hoisted["full"].plans.at(rows, 1).plan]
    return {
        "name": name, "ms": {n: t.median for n, t in times.items()}, "errors": errors, "share": share,
        "quartiles": {n: [t.low, t.median, t.high] for n, t in times.items()},
        "multiply_adds": plan.cost.multiply_adds, "plan": plan.level.name.lower(), "compile": refused,
    }  # fmt: skip


def _add_compiled(calls: dict[str, Callable[[], Tensor]], model: nn.Module, given: tuple[Tensor, Any]) -> str:
    """The original by `torch.compile`, or what that says."""
    made = torch.compile(model)

    def run() -> Tensor:
        result: Tensor = made(given[0], anew(given[1]))
        return result

    try:
        with torch.no_grad():
            run()
    except Exception as error:  # of any kind: it is written down
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    calls["compiled"] = run
    return ""


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | ids of the request | eager, ms | compiled | request | full | by hand | eager / full "
        "| by their lower quartiles | eager / by hand | aimed at |",
        f"|---|{'---:|' * 10}",
    ]
    for r in results:
        ms, low = r["ms"], {n: q[0] for n, q in r["quartiles"].items()}
        compiled = f"{ms['compiled']:.2f}" if "compiled" in ms else "refused" if r["compile"] else ""
        lines.append(
            f"| {r['name']} | {r['share']:.0%} | {ms['eager']:.2f} | {compiled} | {ms['request']:.2f} "
            f"| {ms['full']:.2f} | {ms['by hand']:.2f} | {ms['eager'] / ms['full']:.2f}x "
            f"| {low['eager'] / low['full']:.2f}x | {ms['eager'] / ms['by hand']:.2f}x | {GOAL:g}x |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write down."""
    parser = dated.flags(__doc__, 20.0, tiny="few features and candidates")
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    parser.add_argument("--compiled", action="store_true", help="the original by torch.compile, too")
    parser.add_argument("--name", default="jagged", help="of the files that are written, behind the date")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sizes = TINY if options.tiny else Sizes()
    for name in options.only:
        made = measured(name, sizes, options.seconds, options.compiled)
        print(table([made]).splitlines()[-1], flush=True)
        write(options.out, options.name, sizes, made, options.note)


def write(folder: Path, name: str, sizes: Sizes, result: Mapping[str, Any], note: str) -> None:
    """Dated JSON, and Markdown to read; a model is added to those that were measured on the same day."""
    record = dated.begun("torchrec") | {"sizes": asdict(sizes), "note": note}
    path = dated.path_of(folder, name, record)
    before = json.loads(path.read_text()) if path.exists() else {}
    same = all(before.get(key) == record[key] for key in ("machine", "sizes"))
    every = {r["name"]: r for r in [*(before["results"] if same else []), result]}
    record["results"] = [every[own] for own in MODELS if own in every]
    about = (
        f"one request of {sizes.candidates} candidates, {sizes.user} + {sizes.item} features of width {sizes.width}, "
        f"tables of {sizes.ids:,} rows, float32: `python -m benchmarks.jagged`. {note}"
    )
    dated.write(folder, name, record, "Bags of ids", about, table(record["results"]), ("torchrec",))


if __name__ == "__main__":
    main()
