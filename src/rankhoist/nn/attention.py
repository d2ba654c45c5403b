"""Self-attention over context and candidate tokens in which the context never reads a candidate.

Yevgeny Tkach, "Context Features Are Cheap: Rank-Aware Decomposition for Efficient Feature Interaction in Recommender
Systems", arXiv 2605.27450.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankhoist.nn.rows import spread
from rankhoist.nn.streams import TwoStreams


class RankAwareAttention(TwoStreams):
    """L layers over context tokens c `[R, C, d]` and candidate tokens k `[N, T, d]` -> `[N, C + T, d]`; each is

        c' = c + O_c attend(Q_c, K_c, V_c)                        c'' = c' + feed_forward_c(c')
        k' = k + O_k attend(Q_k, [K_c; K_k], [V_c; V_k])          k'' = k' + feed_forward_k(k')

    with `attend(Q, K, V) = softmax(Q K^T / sqrt(d / h)) V` in each of h heads, Q, K and V linear in the normed tokens
    of their source, and `feed_forward(x) = W_2 relu(W_1 norm(x) + b_1) + b_2` of f hidden units (default 4 d). All
    weights are the source's own. Tokens are sets: positions, if any, are for the caller to add.

    K_c and V_c come from the tokens at the layer's input and exist once per request, at every depth.

    Parameters: L * 2 * (4 (d^2 + d) + 4 d + 2 d f + f + d). Cost, multiply-adds per layer:
    C (4 d^2 + 2 C d + 2 d f) per request and T (4 d^2 + 2 (C + T) d + 2 d f) per candidate; a reader of the candidate
    tokens alone leaves only C 2 d^2 (keys and values) of the last layer's work per request.
    Source: arXiv 2605.27450, section 4.3; norms before the sublayers as in arXiv 2002.04745.

    Raises:
        ValueError: the width is not a multiple of the heads.
    """

    def __init__(self, width: int, heads: int, layers: int = 1, *, hidden: int | None = None) -> None:
        super().__init__(("tokens", width), ("tokens", width))
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.layers = nn.ModuleList(_Layer(width, heads, hidden or 4 * width) for _ in range(layers))

    def _streams(self, context: Tensor, candidate: Tensor, owner: Tensor | None) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            context, candidate = layer(context, candidate, owner)
        return context, candidate


class _Layer(nn.Module):
    """One layer; both sources read the context tokens of its input."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.context, self.candidate = _Source(width, heads, hidden), _Source(width, heads, hidden)

    def forward(self, context: Tensor, candidate: Tensor, owner: Tensor | None) -> tuple[Tensor, Tensor]:
        query, context_key, context_value = self.context.project(context)
        evolved = self.context.finish(context, F.scaled_dot_product_attention(query, context_key, context_value))
        query, key, value = self.candidate.project(candidate)
        key = torch.cat([spread(context_key, owner), key], dim=2)
        value = torch.cat([spread(context_value, owner), value], dim=2)
        return evolved, self.candidate.finish(candidate, F.scaled_dot_product_attention(query, key, value))


class _Source(nn.Module):
    """What the tokens of one source own in a layer: norms, projections and feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each `[B, T, d] -> [B, h, T, d / h]`."""
        normed = self.norm(tokens)
        return self._by_head(self.query(normed)), self._by_head(self.key(normed)), self._by_head(self.value(normed))

    def finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Output projection and feed-forward with their residuals, `[B, T, d]`."""
        tokens = tokens + self.output(attended.transpose(1, 2).flatten(2))
        finished: Tensor = tokens + self.feed_forward(tokens)
        return finished

    def _by_head(self, tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
