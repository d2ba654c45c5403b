"""A linear layer over context and candidate columns, split by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankhoist.nn.rows import Offsets, check, owners, spread


class RankSplitLinear(nn.Module):
    """`y = W [c; k] + b = (W_c c + b) + W_k k`; context `[R, C]` and candidate `[N, K]` -> `[N, out]`.

    W_c `[out, C]` and W_k `[out, K]` are the columns of W; they start as those of `nn.Linear(C + K, out)`.

    Parameters: (C + K) out, and out for the bias. Cost: C out per request and K out per candidate, multiply-adds.
    Source: MaRI, arXiv 2602.23105; rank-aware decomposition, arXiv 2605.27450, fully connected layers.
    """

    def __init__(self, context_width: int, candidate_width: int, out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.context = nn.Linear(context_width, out, bias=bias)
        self.candidate = nn.Linear(candidate_width, out, bias=False)
        self._copy(nn.Linear(context_width + candidate_width, out, bias=bias))

    @classmethod
    def from_linear(cls, linear: nn.Linear, context_width: int) -> RankSplitLinear:
        """The same map with a copy of the weights; the first `context_width` columns read the context.

        Raises:
            ValueError: one side would have no column.
        """
        width = linear.in_features
        if not 0 < context_width < width:
            raise ValueError(f"context_width must leave columns on both sides: 0 < {context_width} < {width} is false")
        split = cls(context_width, width - context_width, linear.out_features, bias=linear.bias is not None)
        split.to(linear.weight.device, linear.weight.dtype)._copy(linear)
        return split

    def to_linear(self) -> nn.Linear:
        """The same map over `[context; candidate]`, with a copy of the weights."""
        weight, bias = self._joined_weight(), self.context.bias
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
        return linear

    def forward(self, context: Tensor, candidate: Tensor, request_offsets: Offsets | None = None) -> Tensor:
        """Plain rows or a grouped batch (`rankhoist.nn.rows`) -> `[N, out]`.

        Raises:
            InputError: wrong widths or row counts, or offsets that do not fit.
        """
        check("context", context, self.context.in_features)
        check("candidate", candidate, self.candidate.in_features)
        return self.per_row(context, candidate, owners(context, candidate, request_offsets))

    def per_row(self, context: Tensor, candidate: Tensor, owner: Tensor | None) -> Tensor:
        """The same, unchecked, with the request of each candidate known."""
        shared: Tensor = self.context(context)
        own: Tensor = self.candidate(candidate)
        return spread(shared, owner) + own

    def _joined_weight(self) -> Tensor:
        return torch.cat([self.context.weight, self.candidate.weight], dim=1).detach()

    def _copy(self, linear: nn.Linear) -> None:
        with torch.no_grad():
            widths = [self.context.in_features, self.candidate.in_features]
            for part, columns in zip((self.context, self.candidate), linear.weight.split(widths, dim=1), strict=True):
                part.weight.copy_(columns)
            if linear.bias is not None:
                self.context.bias.copy_(linear.bias)
