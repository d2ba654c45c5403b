"""Attributes that a model writes while it computes: kept for later, or read in the next call?

    self.weights = scores.softmax(1)          self.calls += 1; return scores * self.calls

A graph writes no attribute. What nobody reads is nothing lost, as attention that is kept to be looked at. Where the
next call reads it, scores depend on the calls before, and no graph is the model. Two calls on the same rows tell which.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from rankhoist.capture.alike import leaves_alike
from rankhoist.errors import UnsupportedModelError

Attributes = dict[tuple[int, str], tuple[nn.Module, str, Any]]
NOTHING = object()


@contextlib.contextmanager
def written(model: nn.Module) -> Iterator[Attributes]:
    """Attributes of modules, no weights, that are written meanwhile: where, and what they were and will be again."""
    own = {id(m) for m in (*model.modules(), getattr(model.forward, "__self__", model))}  # whose method it may be
    found, write = Attributes(), nn.Module.__setattr__

    def noted(module: nn.Module, name: str, value: Any) -> None:
        if id(module) in own and name not in _parts(module):
            found.setdefault((id(module), name), (module, name, module.__dict__.get(name, NOTHING)))
        write(module, name, value)

    try:
        with mock.patch.object(nn.Module, "__setattr__", noted):
            yield found
    finally:
        _restore(found)


def _parts(module: nn.Module) -> set[str]:
    return {"training", *module._parameters, *module._buffers, *module._modules}


def check_stateless(model: nn.Module, bound: inspect.BoundArguments, found: Attributes) -> None:
    """That calls of a model which writes attributes do not depend on those before.

    Raises:
        UnsupportedModelError: two calls on the rows of the example differ.
    """
    if not found:
        return
    try:
        with torch.no_grad():
            first, second = (copy.deepcopy(model(*bound.args, **bound.kwargs)) for _ in range(2))
    except Exception:  # whatever it is, it is the model's own failure
        return
    finally:
        _restore(found)
    if not leaves_alike(second, first):
        names = {id(m): path for path, m in model.named_modules()}
        said = ", ".join(repr(f"{names.get(id(module), '')}.{name}".lstrip(".")) for module, name, _ in found.values())
        raise UnsupportedModelError(
            f"the model keeps something from call to call: two calls on the same rows differ, and it writes {said}. "
            "Scores would depend on the calls before; make what it keeps an input, and return what becomes of it"
        )


def _restore(found: Attributes) -> None:
    for module, name, value in found.values():
        if value is NOTHING:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = value
