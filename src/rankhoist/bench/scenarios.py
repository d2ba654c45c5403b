"""Scenarios: a model, and what one row of its inputs looks like on the context's and on the candidate's side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist.bench import industrial
from rankhoist.bench.blocks import MixedTokens, UserAttention
from rankhoist.bench.models import (
    BilinearPairs,
    CausalHistory,
    CompressedLayers,
    CompressedPairs,
    CrossLayers,
    DotPairs,
    FactorizedLayers,
    FieldAttention,
    HistoryTransformer,
    Layers,
    MatrixPairs,
    MixedExperts,
    NormLinear,
    TargetAttention,
    TargetRanker,
    TokenAttention,
)
from rankhoist.bench.sequences import (
    EncodedHistory,
    InterestHistory,
    PaddedHistory,
    RecurrentHistory,
    SearchedHistory,
    TimedHistory,
    WindowedHistory,
)


@dataclass(frozen=True)
class Ids:
    """Integers from 0 to `size`, `shape` of them in a row."""

    size: int
    shape: tuple[int, ...] = ()


Kind = tuple[int, ...] | Ids  # floats of this shape in a row, or ids
Side = Kind | Mapping[str, Kind]  # one input, or several by name
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Scenario:
    """A model and its inputs per row. `inputs` and `model` come from fixed seeds.

    Attributes:
        context, candidate: one input (then named `context` and `candidate`) or several by name, in the order of the
            model's signature, the context's first.
        family: the scenarios of one model among which only the context's share of the columns changes, and `share` is
            that share in percent.
        dense: nearly all of its work is matrix products, so that these alone are a fair floor.
        one_dict: the model takes one dict of all inputs.
    """

    name: str
    build: Callable[[], nn.Module]
    context: Side
    candidate: Side
    family: str = ""
    share: int = 0
    dense: bool = False
    one_dict: bool = False

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model in eval mode, weights from a fixed seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().to(dtype).eval()

    @property
    def context_names(self) -> list[str]:
        """The inputs that belong to the request."""
        return list(_named(self.context, "context"))

    def sides(
        self, requests: int, candidates: int, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensors, Tensors]:
        """Random inputs by name: the context's `[R, ...]` and the candidates' `[N, ...]`."""
        g = torch.Generator().manual_seed(seed)
        return (
            {name: _drawn(kind, requests, g, dtype) for name, kind in _named(self.context, "context").items()},
            {name: _drawn(kind, candidates, g, dtype) for name, kind in _named(self.candidate, "candidate").items()},
        )

    def arguments(self, context: Tensors, candidate: Tensors) -> tuple[Any, ...]:
        """What the model is called with."""
        both = {**context, **candidate}
        return (both,) if self.one_dict else tuple(both.values())

    def inputs(
        self, requests: int, candidates: int, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> tuple[Any, ...]:
        """Random arguments of a call."""
        return self.arguments(*self.sides(requests, candidates, seed, dtype))


def _named(side: Side, name: str) -> Mapping[str, Kind]:
    return side if isinstance(side, Mapping) else {name: side}


def _drawn(kind: Kind, rows: int, g: torch.Generator, dtype: torch.dtype) -> Tensor:
    if isinstance(kind, Ids):
        return torch.randint(kind.size, (rows, *kind.shape), generator=g)
    return torch.randn(rows, *kind, generator=g, dtype=dtype)


# -- one model, several shares of context


def _layers(share: int) -> Scenario:
    context = 1024 * share // 100
    return _shared("mlp", share, lambda: Layers(1024, 512, 256, 1), (context,), (1024 - context,))


def _cross(share: int) -> Scenario:
    context = 1024 * share // 100
    return _shared("cross", share, lambda: CrossLayers(1024, 3, 512), (context,), (1024 - context,))


def _pairs(share: int) -> Scenario:
    context = 40 * share // 100
    return _shared("dot_pairs", share, lambda: DotPairs(40, 512, 256, 1), (context, 64), (40 - context, 64))


def _target(share: int) -> Scenario:
    """A history of 50, which counts as its pooled width of 64 among the 1024 columns."""
    context = 1024 * share // 100
    sides = {"history": (50, 64), "profile": (context - 64,)}, (1024 - context,)
    return _shared("target_ranker", share, lambda: TargetRanker(64, 1024, 256, 128, 1), *sides)


def _shared(family: str, share: int, build: Callable[[], nn.Module], context: Side, candidate: Side) -> Scenario:
    return Scenario(
        f"{family}_share_{share}", build, context, candidate, family, share, dense=family != "target_ranker"
    )


def _industrial() -> Scenario:
    m = industrial
    user: dict[str, Kind] = {name: Ids(m.IDS) for name in m.USER_IDS} | {name: () for name in m.USER_DENSE}
    user |= {"history_item": Ids(m.ITEMS, (m.STEPS,)), "history_category": Ids(m.CATEGORIES, (m.STEPS,))}
    item: dict[str, Kind] = {name: Ids(m.IDS) for name in m.ITEM_IDS} | {name: () for name in m.ITEM_DENSE}
    item |= {"item": Ids(m.ITEMS), "category": Ids(m.CATEGORIES)}
    return Scenario("industrial", m.IndustrialRanker, user, item, one_dict=True)


def _along_histories() -> list[Scenario]:
    """Rankers whose history and target are one sequence, or that search a long one."""
    events: dict[str, Kind] = {"history": (50, 64), "times": Ids(100, (50,))}
    target: dict[str, Kind] = {"item": (64,), "time": Ids(100)}
    return [
        Scenario("padded_history_50", lambda: PaddedHistory(1000, 51, 64, 2, 2), Ids(1000, (50,)), Ids(1000)),
        Scenario("padded_history_200", lambda: PaddedHistory(1000, 201, 64, 2, 2), Ids(1000, (200,)), Ids(1000)),
        Scenario("encoded_history_1", lambda: EncodedHistory(21, 64, 4, 1), (20, 64), (64,)),
        Scenario("encoded_history_2", lambda: EncodedHistory(21, 64, 4, 2), (20, 64), (64,)),
        Scenario("recurrent_history", lambda: RecurrentHistory(64), (50, 64), (64,)),
        Scenario("interest_history", lambda: InterestHistory(64, 128, 1), (50, 64), (64,)),
        Scenario("windowed_history", lambda: WindowedHistory(64, 32, 2, 3, 4), (50, 64), (64,)),
        Scenario("timed_history", lambda: TimedHistory(51, 64, 2), events, target),
        Scenario("searched_history", lambda: SearchedHistory(64, 50, 128, 1), (1000, 64), (64,)),
    ]


def _crosses(context: int, candidate: int, depth: int) -> list[Scenario]:
    """A cross network, full and of rank 64."""
    name, width = f"{context}_{candidate}", context + candidate
    full = Scenario(f"cross_full_{name}", lambda: CrossLayers(width, depth, 512), (context,), (candidate,), dense=True)
    low = Scenario(f"cross_low_rank_{name}", lambda: CrossLayers(width, depth, 512, 64), (context,), (candidate,),
                   dense=True)  # fmt: skip
    return [full, low]


SHARES = [25, 50, 75, 90]
FAMILIES = [make(share) for make in (_layers, _cross, _pairs, _target) for share in SHARES]
SCENARIOS = [
    Scenario("mlp", lambda: Layers(1024, 512, 256, 1), (768,), (256,), dense=True),
    Scenario("deepfm", lambda: FactorizedLayers(32, 16, 1000, 400, 400, 1), Ids(1000, (24,)), Ids(1000, (8,))),
    Scenario("cross_full", lambda: CrossLayers(1024, 3, 512), (900,), (124,), dense=True),
    Scenario("cross_low_rank", lambda: CrossLayers(1024, 3, 512, rank=64), (900,), (124,), dense=True),
    *_crosses(514, 577, 4),
    *_crosses(768, 256, 3),
    Scenario("cross_wide_candidate", lambda: CrossLayers(1536, 3, 512), (1024,), (512,), dense=True),
    Scenario("dot_pairs_80_10", lambda: DotPairs(90, 512), (80, 32), (10, 32), dense=True),
    Scenario("dot_pairs_27_4", lambda: DotPairs(31, 512, 256, 1), (27, 128), (4, 128), dense=True),
    Scenario("norm_linear", lambda: NormLinear(1024, 512), (900,), (124,), dense=True),
    Scenario("target_attention", lambda: TargetAttention(64), (50, 64), (64,)),
    Scenario("target_attention_200", lambda: TargetAttention(64), (200, 64), (64,)),
    Scenario("history_transformer", lambda: HistoryTransformer(21, 64, 8, 512, 256, 1), (20, 64), (64,)),
    Scenario("causal_history", lambda: CausalHistory(51, 64, 4, 2), (50, 64), (64,)),
    Scenario("token_attention", lambda: TokenAttention(32, 2), (40, 32), (8, 32)),
    Scenario("autoint", lambda: FieldAttention(28, 32, 2, 3), (24, 32), (4, 32)),
    Scenario("compressed_pairs", lambda: CompressedPairs(28, 128, 128), (24, 16), (4, 16)),
    Scenario("xdeepfm", lambda: CompressedLayers(28, 16, 64, 64), (24, 16), (4, 16)),
    Scenario("matrix_pairs", lambda: MatrixPairs(28, 16), (24, 16), (4, 16)),
    Scenario("bilinear_pairs", lambda: BilinearPairs(28, 16, 128), (24, 16), (4, 16)),
    Scenario("mmoe", lambda: MixedExperts(768, 3, 4), (576,), (192,), dense=True),
    Scenario("ple", lambda: MixedExperts(768, 2, 2, 2), (576,), (192,), dense=True),
    *_along_histories(),
    _industrial(),
]  # fmt: skip
BLOCKS = [  # for GPUs: a CPU needs seconds for a call of a few hundred candidates
    Scenario("mixed_tokens", lambda: MixedTokens(1178 + 866, 433), (1178, 256), (866, 256), dense=True),
    Scenario("user_attention", lambda: UserAttention(2), {"keys": (512, 256), "values": (512, 256)},
             {"queries": (64, 256)}),
]  # fmt: skip
QUICK = ["cross_full", "cross_low_rank", "dot_pairs_80_10", "dot_pairs_27_4", "target_attention", "norm_linear",
         "mlp_share_25", "industrial"]  # fmt: skip


def scenario(name: str) -> Scenario:
    """A scenario by name."""
    return next(s for s in [*SCENARIOS, *FAMILIES, *BLOCKS] if s.name == name)


def names(scenarios: Sequence[Scenario]) -> list[str]:
    """Of scenarios."""
    return [s.name for s in scenarios]
