"""TorchScript modules, a whole model or parts of one: torch's own converter makes modules of operators of them."""

from __future__ import annotations

import contextlib
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist.capture.signature import Arguments
from rankhoist.errors import CaptureError, ExportError
from rankhoist.mistakes import in_one_line

aten = torch.ops.aten
PLAIN: dict[Any, Callable[..., Any]] = {  # what Python has for operators on numbers and lists of them
    torch.ops.prim.unchecked_cast.default: lambda x: x,
    **{
        getattr(getattr(aten, name), overload): getattr(operator, name)
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul")
        for overload in getattr(aten, name).overloads()
        if overload in ("int", "int_list")
    },
}


def signature_of(model: nn.Module) -> Arguments:
    """The arguments of a model; those of a TorchScript module by its schema."""
    if not isinstance(model, torch.jit.ScriptModule):
        return Arguments.of(model.forward)
    kind, empty = inspect.Parameter, inspect.Parameter.empty
    return Arguments(
        inspect.Signature([
            kind(a.name, kind.POSITIONAL_OR_KEYWORD, default=a.default_value if a.has_default_value() else empty)
            for a in model.forward.schema.arguments[1:]  # type: ignore[attr-defined]
        ])
    )  # fmt: skip


def converted(model: torch.jit.ScriptModule, args: tuple[Any, ...], path: str = "") -> nn.Module:
    """A TorchScript module as one that exports, by torch's own converter; `args` are those of a call of it, in full.

    Raises:
        ExportError: the converter refuses it; says at which path of the model it is.
    """
    from torch._export.converter import TS2EPConverter  # takes seconds

    found: list[torch.fx.GraphModule] = []

    class Converter(TS2EPConverter):
        """Without the export that follows, which knows no rows."""

        def retrace_as_exported_program(self, gm: torch.fx.GraphModule, constants: dict[str, Any]) -> Any:
            for name in (n for n, value in constants.items() if isinstance(value, Tensor)):  # they are no weights
                path, _, own = name.rpartition(".")
                gm.get_submodule(path)._non_persistent_buffers_set.add(own)
            found.append(_exportable(gm, model))
            return SimpleNamespace(state_dict=model.state_dict())

    shapes = mock.patch.object(torch._C, "_propagate_and_assign_input_shapes", lambda graph, *_: graph)
    try:
        with warnings.catch_warnings(), shapes:  # it takes no None, and nobody asks for them
            warnings.simplefilter("ignore")
            Converter(model, args).convert()
    except Exception as error:
        where = f"{path!r}, which is " if path else ""
        raise ExportError(
            f"torch cannot convert {where}the TorchScript module {model.original_name} ({in_one_line(error)}). Hoist "
            "the nn.Module that it was scripted or traced from."
        ) from error
    return found[0]


def _exportable(gm: torch.fx.GraphModule, script: nn.Module) -> torch.fx.GraphModule:
    """What the converter made of a script, without what keeps it from being exported.

    It puts lists of tensors, as the weights of recurrent layers, into calls as they are, compares sizes by operators
    that take them for constants, and calls what tells a tensor from None.
    """
    weights = {x.data_ptr(): name for name, x in script.state_dict().items()}
    own = {x.data_ptr(): name for name, x in [*gm.named_parameters(), *gm.named_buffers()]}
    for node in list(gm.graph.nodes):
        with gm.graph.inserting_before(node):

            def named(leaf: Any) -> Any:
                if not isinstance(leaf, Tensor):
                    return leaf
                place = leaf.data_ptr()
                if place not in own:
                    own[place] = weights.get(place) or f"constant_{len(own)}"
                    _put(gm, own[place], leaf.detach(), place in weights)
                return gm.graph.get_attr(own[place])

            node.args = pytree.tree_map(named, node.args)
    for part in gm.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.target = PLAIN.get(node.target, node.target)
            part.recompile()
    return gm


def _put(module: nn.Module, name: str, tensor: Tensor, weight: bool) -> None:
    """A weight by its name, or a constant."""
    path, _, own = name.rpartition(".")
    if path and path not in dict(module.named_modules()):
        module.add_submodule(path, nn.Module())  # type: ignore[operator]
    inner = module.get_submodule(path)
    if weight:
        inner.register_parameter(own, nn.Parameter(tensor, requires_grad=False))
    else:
        inner.register_buffer(own, tensor, persistent=False)


@contextlib.contextmanager
def scripts_converted(model: nn.Module, bound: inspect.BoundArguments) -> Iterator[bool]:
    """While a model is exported, what its scripts are converted to is in their places; whether there are any.

    Raises:
        CaptureError: the model fails on its example.
        ExportError: a script cannot be converted.
    """
    places = list(_scripts(model))
    stand_ins: dict[int, nn.Module] = {}
    for script, args in _first_calls(model, bound, places):
        path = next(f"{path}.{name}".lstrip(".") for _, path, name, own in places if own is script)
        stand_ins[id(script)] = _called_alike(converted(script, args, path), signature_of(script))
    with _replaced(places, lambda script: stand_ins.get(id(script), script)):
        yield bool(places)


Place = tuple[
    nn.Module, str, str, torch.jit.ScriptModule
]  # the module that has it, that one's path, and its name there


def _scripts(model: nn.Module) -> Iterator[Place]:
    """Those that are not parts of others."""
    if not isinstance(model, torch.jit.ScriptModule):
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                own = module._modules.items()
                yield from ((module, path, n, m) for n, m in own if isinstance(m, torch.jit.ScriptModule))


def _first_calls(
    model: nn.Module, bound: inspect.BoundArguments, places: list[Place]
) -> Iterator[tuple[torch.jit.ScriptModule, tuple[Any, ...]]]:
    """Every script that the model calls on its example, with the arguments of the first time, defaults too."""
    calls: dict[int, tuple[torch.jit.ScriptModule, tuple[Any, ...]]] = {}

    class Observed(nn.Module):
        def __init__(self, script: torch.jit.ScriptModule) -> None:
            super().__init__()
            self.script = script

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            calls.setdefault(id(self.script), (self.script, _in_full(signature_of(self.script), args, kwargs)))
            return self.script(*args, **kwargs)

    if places:
        try:
            with _replaced(places, Observed), torch.no_grad():
                model(*bound.args, **bound.kwargs)
        except Exception as error:
            raise CaptureError(f"the model fails on rows of its example: {in_one_line(error)}") from error
    yield from calls.values()


def _in_full(signature: Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    bound = signature.bind(args, kwargs)
    bound.apply_defaults()
    return bound.args


def _called_alike(module: nn.Module, signature: Arguments) -> nn.Module:
    """A module of positional arguments that takes those by name and leaves some to their defaults."""
    inner = module.forward
    module.forward = lambda *args, **kwargs: inner(*_in_full(signature, args, kwargs))
    return module


@contextlib.contextmanager
def _replaced(places: list[Place], made: Callable[[Any], nn.Module]) -> Iterator[None]:
    new = {id(script): made(script) for *_, script in places}
    try:
        for parent, _, name, script in places:
            parent._modules[name] = new[id(script)]
        yield
    finally:
        for parent, _, name, script in places:
            parent._modules[name] = script
