"""Labelled rows: what a model is trained on, whatever they come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankhoist.lab.data.features import Feature

TRAIN_SHARE = 0.8
VALIDATION_SHARE = 0.1

Features = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """E rows, those of a request together; row = one (context, candidate) pair.

    source           where they come from, for titles
    features         name -> [E, ...], as the schema says
    labels           [E] float32, 0 or 1
    request_offsets  [R + 1]: where the rows of every request begin and end
    true_probability  [E] float32 probability of the label, where the source knows it
    train, validation, test   consecutive row ranges; no request lies in two of them
    """

    source: str
    schema: tuple[Feature, ...]
    features: Features
    labels: Tensor
    request_offsets: Tensor
    train: slice
    validation: slice
    test: slice
    true_probability: Tensor | None = None

    @property
    def context(self) -> tuple[str, ...]:
        """Names of the context features."""
        return tuple(feature.name for feature in self.schema if feature.side == "context")

    @property
    def candidate(self) -> tuple[str, ...]:
        """Names of the candidate features."""
        return tuple(feature.name for feature in self.schema if feature.side == "candidate")

    @property
    def varying(self) -> tuple[str, ...]:
        """Names of the features whose lists may have any length, along axis 1."""
        return tuple(feature.name for feature in self.schema if feature.varying)

    def rows(self, index: slice | Tensor) -> Features:
        """The features of some rows."""
        return {name: value[index] for name, value in self.features.items()}

    def example(self, rows: int = 8) -> Features:
        """The last `rows` rows, which keep no others in memory: real values for tracing a model."""
        return {name: value.clone() for name, value in self.rows(slice(-rows, None)).items()}

    def made_up(self, rows: int = 8) -> Features:
        """Rows that are nobody's, for files that others get: ids of the vocabularies, dense values from 0 to 1."""
        generator = torch.Generator().manual_seed(0)

        def drawn(feature: Feature) -> Tensor:
            shape = (rows, *self.features[feature.name].shape[1:])
            if feature.kind == "dense":
                return torch.rand(shape, generator=generator)
            return torch.randint(feature.size, shape, generator=generator)

        return {feature.name: drawn(feature) for feature in self.schema}
