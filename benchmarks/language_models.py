"""Decoders of transformers as rankers, against its cache of a prefix: `python -m benchmarks.language_models`.

A history of 100 tokens, 30 of them padding, and four tokens of each of 200 candidates, in float32 on one thread.
`eager` scores rows as they are. `cache` is what one writes by hand: the history once with `use_cache`, its keys and
values repeated for every candidate, then the candidates' tokens. Scores are compared before anything is timed. Medians
of calls in turn, of processor time. Writes dated JSON and Markdown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

import rankhoist
from benchmarks import dated
from rankhoist import Workload
from rankhoist.compiler.targets.timing import interleaved

IDS, ROUNDING = 5000, 1e-4  # of the largest score


class Ranker(nn.Module):
    """The score of the last token; token 0 is padding, in front."""

    def __init__(self, decoder: nn.Module, width: int) -> None:
        super().__init__()
        self.decoder, self.top = decoder, nn.Linear(width, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        tokens = torch.cat([history, item], 1)
        made = self.decoder(input_ids=tokens, attention_mask=(tokens != 0).long(), use_cache=False).last_hidden_state
        score: Tensor = self.top(made[:, -1]).squeeze(1)
        return score


def by_hand(model: Ranker, history: Tensor, item: Tensor) -> Tensor:
    """The history `[1, T]` once, then the tokens of the candidates `[N, K]` over its keys and values, repeated."""
    rows = len(item)
    seen = torch.cat([(history != 0).long().expand(rows, -1), (item != 0).long()], 1)
    before = model.decoder(input_ids=history, attention_mask=(history != 0).long(), use_cache=True).past_key_values
    before.batch_repeat_interleave(rows)
    made = model.decoder(input_ids=item, attention_mask=seen, past_key_values=before, use_cache=True).last_hidden_state
    score: Tensor = model.top(made[:, -1]).squeeze(1)
    return score


def llama(width: int, layers: int, most: int) -> nn.Module:
    """Rotary places, gated layers."""
    return LlamaModel(LlamaConfig(
        vocab_size=IDS, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=most,
    ))  # fmt: skip


def qwen(width: int, layers: int, most: int) -> nn.Module:
    """Keys and values that heads share, normed."""
    return Qwen3Model(Qwen3Config(
        vocab_size=IDS, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=width // 4, max_position_embeddings=most,
    ))  # fmt: skip


def gpt2(width: int, layers: int, most: int) -> nn.Module:
    """Learned places."""
    return GPT2Model(GPT2Config(vocab_size=IDS, n_embd=width, n_layer=layers, n_head=4, n_positions=most))


DECODERS: dict[str, Callable[[int, int, int], nn.Module]] = {"GPT-2": gpt2, "Llama": llama, "Qwen3": qwen}


def measured(name: str, width: int, layers: int, length: int, rows: int, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    model = Ranker(DECODERS[name](width, layers, length + 4), width).eval()
    history, item = torch.randint(1, IDS, (1, length)), torch.randint(1, IDS, (rows, 4))
    history[0, : 3 * length // 10] = 0
    example = {"history": torch.randint(1, IDS, (4, length)), "item": item[:4]}
    hoisted = rankhoist.hoist(model, example, context=["history"], workload=Workload(candidates=rows))
    repeated = history.expand(rows, -1).contiguous()
    calls = {
        "eager": lambda: model(repeated, item), "cache": lambda: by_hand(model, history, item),
        "full": lambda: hoisted(history, item),
    }  # fmt: skip
    with torch.no_grad():
        want = calls["eager"]()
        errors = {n: float((run() - want).abs().max() / want.abs().max()) for n, run in calls.items()}
        if max(errors.values()) > ROUNDING:
            raise SystemExit(f"{name}: scores differ: {errors}")
        times = interleaved(calls, seconds, clock=time.thread_time, warmup=1)
    total = hoisted.report().total()
    return {
        "name": name, "ms": {n: t.median for n, t in times.items()}, "errors": errors,
        "quartiles": {n: [t.low, t.median, t.high] for n, t in times.items()},
        "multiply_adds": [total.before.multiply_adds, total.after.multiply_adds],
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| decoder | eager, ms | cache by hand | full | eager / full | cache / full | multiply-adds |",
        f"|---|{'---:|' * 6}",
    ]
    for r in rows:
        eager, cache, full = (r["ms"][n] for n in ("eager", "cache", "full"))
        before, after = r["multiply_adds"]
        lines.append(
            f"| {r['name']} | {eager:.0f} | {cache:.0f} | {full:.0f} | {eager / full:.1f}x | {cache / full:.2f}x | "
            f"{before / after:.1f}x fewer |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write down."""
    options = dated.flags(__doc__, 30.0, tiny="small models").parse_args(arguments)
    torch.set_num_threads(1)
    width, layers, length, rows = (32, 1, 10, 20) if options.tiny else (256, 4, 100, 200)
    sizes = {"width": width, "layers": layers, "history": length, "candidates": rows}
    results = []
    for name in DECODERS:
        results.append(measured(name, width, layers, length, rows, options.seconds))
        print(table(results).splitlines()[-1], flush=True)
    record = dated.begun("transformers") | sizes | {"results": results}
    about = (
        f"{layers} layers of width {width}, a history of {length} tokens, four tokens of each of {rows} candidates, "
        f"float32: `python -m benchmarks.language_models`. {options.note}"
    )
    dated.write(
        options.out, "language-models", record, "Language models as rankers", about, table(results), ("transformers",)
    )


if __name__ == "__main__":
    main()
