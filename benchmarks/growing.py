"""A prepared state that grows by an event, beside a new one: `python -m benchmarks.growing [--tiny]`.

Histories of 200 events of width 64 (and 256), in float32 on one thread: a GRU, and a causal transformer of two layers
with padding masked. `prepare` makes the state of the history with one more event; `append` goes on event by event, for
forty events; a step by hand is what one would write for the transformer. States are compared in float64 before anything
is timed, after 1, 100 and 1000 events. Medians of calls in turn, of processor time. Writes dated JSON and Markdown.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankhoist
from benchmarks import dated
from rankhoist import HoistedModel
from rankhoist.compiler.targets.timing import interleaved
from rankhoist.runtime import RequestState
from rankhoist.runtime.alike import error

IDS, LENGTH, EVENTS, IN_TURN = 5000, 200, 1000, 40
EQUAL = 1e-10  # of the largest element of a state, in float64


class Recurrent(nn.Module):
    """The last state of a GRU."""

    def __init__(self, width: int, most: int) -> None:
        super().__init__()
        self.ids, self.gru, self.top = nn.Embedding(IDS, width), nn.GRU(width, width, batch_first=True), _top(width)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        made: Tensor = self.top(torch.cat([self.gru(self.ids(history))[1][-1], self.ids(item)], 1))
        return made.squeeze(1)


class Causal(nn.Module):
    """The last position of two layers of attention."""

    def __init__(self, width: int, most: int) -> None:
        super().__init__()
        self.ids, self.places, self.top = nn.Embedding(IDS, width), nn.Embedding(most, width), _top(width)
        layer = nn.TransformerEncoderLayer(width, width // 32, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        length = history.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = self.ids(history) + self.places(torch.arange(length))
        x = self.layers(x, mask=later, src_key_padding_mask=history == 0)[:, -1]
        made: Tensor = self.top(torch.cat([x, self.ids(item)], 1))
        return made.squeeze(1)


class ByHand:
    """One position of `Causal` as one would write it: keys and values in memory that is there, a mask of padding."""

    def __init__(self, model: Causal, width: int, requests: int, most: int) -> None:
        self.model, self.width, self.heads, self.length = model, width, width // 32, 0
        sizes = requests, self.heads, most, 32
        self.memory = [(torch.empty(sizes), torch.empty(sizes)) for _ in model.layers.layers]
        self.mask = torch.zeros(requests, 1, 1, most)

    def append(self, ids: Tensor) -> Tensor:
        """The last position `[R, W]` of a history that is longer by `ids` `[R, 1]`."""
        x, at, end = self.model.ids(ids) + self.model.places.weight[self.length], self.length, self.length + 1
        self.mask[..., at] = torch.zeros(ids.shape).masked_fill_(ids == 0, -math.inf)[..., None]
        for layer, (keys, values) in zip(self.model.layers.layers, self.memory, strict=True):
            own: Any = layer
            made = F.linear(own.norm1(x), own.self_attn.in_proj_weight, own.self_attn.in_proj_bias)
            query, key, value = made.view(len(ids), 3, self.heads, 1, 32).unbind(1)
            keys[:, :, at:end], values[:, :, at:end] = key, value
            seen = keys[:, :, :end], values[:, :, :end], self.mask[..., :end]
            x = x + own.self_attn.out_proj(F.scaled_dot_product_attention(query, *seen).reshape(x.shape))
            x = x + own.linear2(own.linear1(own.norm2(x)).relu_())
        self.length = end
        last: Tensor = x[:, 0]
        return last


def _top(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))


CASES: dict[str, tuple[type[nn.Module], int, int]] = {  # width, requests
    "GRU": (Recurrent, 64, 1),
    "GRU, 16 requests": (Recurrent, 64, 16),
    "transformer": (Causal, 64, 1),
    "transformer, 16 requests": (Causal, 64, 16),
    "transformer, width 256": (Causal, 256, 1),
}


def measured(name: str, length: int, events: int, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    kind, width, requests = CASES[name]
    most = length + events + 1
    model = kind(width, most).eval()
    example = {"history": torch.randint(1, IDS, (4, min(length, 20))), "item": torch.randint(1, IDS, (4,))}
    ids = torch.randint(1, IDS, (requests, most))
    hoist = partial(rankhoist.hoist, context=["history"], dynamic={"history": {1: (1, most)}})
    error = drift(hoist(copy.deepcopy(model).double(), example), ids, length, events)
    if error > EQUAL:
        raise SystemExit(f"{name}: states differ by {error:.1e}")
    hoisted = hoist(model, example)
    longer, places = {"history": ids[:, : length + 1]}, itertools.cycle(range(length, length + min(events, IN_TURN)))
    first = state = hoisted.prepare({"history": ids[:, :length]}, growing=True)

    def append() -> None:
        """One event after the other; then from the start again."""
        nonlocal state
        at = next(places)
        state = hoisted.append(first if at == length else state, {"history": ids[:, at : at + 1]})

    calls: dict[str, Callable[[], object]] = {"prepare": lambda: hoisted.prepare(longer), "append": append}
    if isinstance(model, Causal):
        calls["by hand"] = written_by_hand(model, width, ids, length)
    with torch.no_grad():
        times = interleaved(calls, seconds, clock=time.thread_time)
    return {
        "name": name, "error": error, "ms": {n: t.median for n, t in times.items()},
        "quartiles": {n: [t.low, t.median, t.high] for n, t in times.items()},
    }  # fmt: skip


def written_by_hand(model: Causal, width: int, ids: Tensor, length: int) -> Callable[[], object]:
    """A call that appends an event by hand, once the scores of the history are those of the model."""
    own, item = ByHand(model, width, len(ids), ids.shape[1]), torch.randint(1, IDS, (len(ids),))
    with torch.no_grad():
        for at in range(length):
            last = own.append(ids[:, at : at + 1])
        got, want = model.top(torch.cat([last, model.ids(item)], 1)).squeeze(1), model(ids[:, :length], item)
    if not torch.allclose(got, want, atol=1e-4):
        raise SystemExit(f"by hand, scores differ by {float((got - want).abs().max()):.1e}")
    places = itertools.cycle(range(length, min(ids.shape[1], length + IN_TURN)))

    def append() -> Tensor:
        own.length = at = next(places)
        return own.append(ids[:, at : at + 1])

    return append


def drift(hoisted: HoistedModel, ids: Tensor, length: int, events: int) -> float:
    """The largest difference from a state that is prepared anew, after the first event, a hundred and all."""
    state, worst = hoisted.prepare({"history": ids[:, :length]}, growing=True), 0.0
    for i in range(1, events + 1):
        state = hoisted.append(state, {"history": ids[:, length + i - 1 : length + i]})
        if i in (1, 100, events):
            worst = max(worst, _difference(state, hoisted.prepare({"history": ids[:, : length + i]})))
    return worst


def _difference(state: RequestState, want: RequestState) -> float:
    return error(list(state.tensors.values()), list(want.tensors.values()))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    head = "| model | prepare, ms | append | prepare / append | a step by hand | prepare / by hand | difference |"
    lines = [head, f"|---|{'---:|' * 6}"]
    for r in rows:
        new, grown, hand = (r["ms"].get(n) for n in ("prepare", "append", "by hand"))
        by_hand = f"{hand:.3f} | {new / hand:.1f}x" if hand else "- | -"
        lines.append(f"| {r['name']} | {new:.2f} | {grown:.3f} | {new / grown:.1f}x | {by_hand} | {r['error']:.1e} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write down."""
    options = dated.flags(__doc__, 10.0, tiny="few events").parse_args(arguments)
    torch.set_num_threads(1)
    length, events = (6, 4) if options.tiny else (LENGTH, EVENTS)
    rows = []
    for name in CASES:
        rows.append(measured(name, length, events, options.seconds))
        print(table(rows).splitlines()[-1], flush=True)
    record = dated.begun() | {"length": length, "events": events, "note": options.note, "results": rows}
    about = (
        f"histories of {length} events, float32; differences after {events} events, float64: "
        f"`python -m benchmarks.growing`. {options.note}"
    )
    dated.write(options.out, "growing", record, "States that grow", about, table(rows))


if __name__ == "__main__":
    main()
