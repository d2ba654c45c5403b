"""Two streams: what every model has in which the context never reads a candidate."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from rankhoist.nn.rows import Offsets, check, owners, spread


class TwoStreams(nn.Module, ABC):
    """A context stream `[R, *context_shape]` and a candidate stream `[N, *candidate_shape]` that reads it.

    A size that is free is given by name.
    """

    def __init__(self, context_shape: tuple[int | str, ...], candidate_shape: tuple[int | str, ...]) -> None:
        super().__init__()
        self._shapes = (context_shape, candidate_shape)

    def forward(self, context: Tensor, candidate: Tensor, request_offsets: Offsets | None = None) -> Tensor:
        """Both streams of each row, context first, joined along axis 1: `[N, C + T, ...]`.

        The inputs are plain rows or a grouped batch (`rankhoist.nn.rows`).

        Raises:
            InputError: wrong widths or row counts, or offsets that do not fit.
        """
        owner = self._owners(context, candidate, request_offsets)
        context, candidate = self._streams(context, candidate, owner)
        return torch.cat([spread(context, owner), candidate], dim=1)

    def streams(
        self, context: Tensor, candidate: Tensor, request_offsets: Offsets | None = None
    ) -> tuple[Tensor, Tensor]:
        """Context `[R, C, ...]`, not repeated, and candidates `[N, T, ...]`; raises as `forward` does."""
        return self._streams(context, candidate, self._owners(context, candidate, request_offsets))

    def _owners(self, context: Tensor, candidate: Tensor, request_offsets: Offsets | None) -> Tensor | None:
        check("context", context, *self._shapes[0])
        check("candidate", candidate, *self._shapes[1])
        return owners(context, candidate, request_offsets)

    @abstractmethod
    def _streams(self, context: Tensor, candidate: Tensor, owner: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both streams through all layers; `owner` is the request of each candidate, None for plain rows."""
