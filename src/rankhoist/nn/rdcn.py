"""rDCN, the cross network whose context stays free of candidates at every depth.

Yevgeny Tkach, "Context Features Are Cheap: Rank-Aware Decomposition for Efficient Feature Interaction in Recommender
Systems", arXiv 2605.27450.
"""

from __future__ import annotations

from torch import Tensor, nn

from rankhoist.nn.dcnv2 import cross_weight
from rankhoist.nn.split_linear import RankSplitLinear
from rankhoist.nn.streams import TwoStreams


class RDCN(TwoStreams):
    """Two cross streams; context c `[R, C]` and candidate T `[N, T]` -> `[N, C + T]`, with l = 0 .. L - 1 and

        c_{l+1} = c_0 * (W_c c_l + b_c) + c_l
        T_{l+1} = T_0 * (W_ct c_l + W_t T_l + b_t) + T_l

    W_c `[C, C]`, W_ct `[T, C]`, W_t `[T, T]` and the biases belong to the layer; `*` is elementwise. The candidate
    stream reads c_l, the context at the input of the same layer: evolved by the layers before, not c_0 and not yet
    c_{l+1}. So a layer is one of DCNv2 over [c; T] whose W has zeros where the context would read the candidate.

    evolve_context  False is the paper's ablation rDCN**: no context stream, c_l = c_0 in every layer
    low_rank        r: W_c = U_c V_c^T and [W_ct W_t] = U_t V_t^T with r columns each

    Parameters: L (C^2 + C T + T^2 + C + T); low rank L (r (3 C + 2 T) + C + T); without the context stream the terms
    of W_c and b_c are gone. Cost, multiply-adds: L (C^2 + C T) per request and L T^2 per candidate; low rank L 3 r C
    and L 2 r T. Source: arXiv 2605.27450, equations 19 and 20.
    """

    def __init__(
        self,
        context_width: int,
        candidate_width: int,
        layers: int,
        *,
        low_rank: int | None = None,
        evolve_context: bool = True,
    ) -> None:
        super().__init__((context_width,), (candidate_width,))
        self.context_layers = nn.ModuleList(
            cross_weight(context_width, low_rank) for _ in range(layers if evolve_context else 0)
        )
        self.candidate_layers = nn.ModuleList(
            _CandidateMap(context_width, candidate_width, low_rank) for _ in range(layers)
        )

    def _streams(self, context: Tensor, candidate: Tensor, owner: Tensor | None) -> tuple[Tensor, Tensor]:
        first_context, first = context, candidate
        for depth, layer in enumerate(self.candidate_layers):
            candidate = first * layer(context, candidate, owner) + candidate
            if self.context_layers:
                context = first_context * self.context_layers[depth](context) + context
        return context, candidate


class _CandidateMap(nn.Module):
    """`W_ct c + W_t T + b_t`, `[N, T]`."""

    def __init__(self, context_width: int, candidate_width: int, low_rank: int | None) -> None:
        super().__init__()
        full = low_rank is None
        self.split = RankSplitLinear(context_width, candidate_width, low_rank or candidate_width, bias=full)
        self.widen = nn.Identity() if low_rank is None else nn.Linear(low_rank, candidate_width)

    def forward(self, context: Tensor, candidate: Tensor, owner: Tensor | None) -> Tensor:
        mapped: Tensor = self.widen(self.split.per_row(context, candidate, owner))
        return mapped
