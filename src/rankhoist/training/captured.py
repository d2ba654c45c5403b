"""What the graphs of a mode were captured of, beside weights: none of it may change while they are used."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import nn

PLAIN = (bool, int, str)


@dataclass(frozen=True)
class Captured:
    """The modules, the settings of each, and which of their weights are one; a graph has all three in it.

    A setting is a number or a word that a module's class names in `__constants__`, as layers of torch do with what
    they are made with (the share that dropout leaves out, the momentum of a batch norm), or any number with a fraction,
    such as a temperature. Other whole numbers may count steps, and are not looked at.

    Attributes:
        modules: in order, kept here so that no other one comes to have the place in memory of one that is gone.
        settings: of each of them.
        shared: of each weight, which is the first that is the same.
    """

    modules: tuple[nn.Module, ...]
    settings: list[Any]
    shared: list[int]

    @staticmethod
    def of(model: nn.Module) -> Captured:
        """As it is now."""
        modules = tuple(model.modules())
        return Captured(modules, *_rest(modules))

    def holds(self, modules: tuple[nn.Module, ...]) -> bool:
        """Whether the model, of these modules, is as it was."""
        same = len(modules) == len(self.modules) and all(map(operator.is_, modules, self.modules))
        return same and (self.settings, self.shared) == _rest(modules)


def _rest(modules: tuple[nn.Module, ...]) -> tuple[list[Any], list[int]]:
    """Settings, and which weights are one. Looked at in every step, so without a call per module."""
    settings, shared, first = list[Any](), list[int](), dict[int, int]()
    for module in modules:
        own = module.__dict__
        settings += [x for x in own.values() if type(x) is float]
        settings += [x for name in getattr(type(module), "__constants__", ()) if type(x := own.get(name)) in PLAIN]
        for weights in (own["_parameters"], own["_buffers"]):
            shared += [-1 if t is None else first.setdefault(id(t), len(first)) for t in weights.values()]
    return settings, shared
