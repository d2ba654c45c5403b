"""An example of a call: what binds its arguments, and its tensors by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from rankhoist.arguments import as_a_tensor
from rankhoist.capture.bags import BagNames, JaggedCall, jagged_call
from rankhoist.capture.checks import check_eval_mode, check_weights
from rankhoist.capture.inputs import common_rows, named_leaves
from rankhoist.capture.named import dataclasses_registered
from rankhoist.capture.scripts import signature_of
from rankhoist.capture.signature import Arguments
from rankhoist.capture.varying import Axes, Dynamic, asked
from rankhoist.capture.wrappers import check_whole
from rankhoist.errors import InputError


class Example(NamedTuple):
    """A call of a model.

    Attributes:
        arguments: binds the arguments of any call.
        leaves: its tensors by name.
        bound: the call itself; None where the model is exported already.
        jagged: how jagged inputs are made of it.
        varying: its axes that vary from call to call.
    """

    arguments: Arguments
    leaves: dict[str, Any]
    bound: inspect.BoundArguments | None
    jagged: JaggedCall | None
    varying: Axes


def of_module(
    model: nn.Module, example: Any, training: bool, opaque: bool, jagged: BagNames, dynamic: Dynamic
) -> Example:
    """Of a module, which is checked for what cannot be captured.

    Raises:
        CaptureError: see `capture`.
    """
    check_whole(model)
    check_weights(model, example)
    if not training:
        check_eval_mode(model)
    arguments = signature_of(model)
    if model._forward_pre_hooks_with_kwargs or model._forward_hooks_with_kwargs:
        arguments = arguments.given_as(isinstance(example, Mapping))
    bound = _bound(arguments, example)
    dataclasses_registered(bound.arguments)
    call = jagged_call(bound, jagged)
    leaves = named_leaves(bound.arguments) if call is None else call.leaves
    common_rows(leaves)
    varying = asked(dynamic, leaves)
    if varying and (call is not None or opaque):
        raise InputError("a model with axes that vary has no jagged inputs and no opaque modules yet")
    if call is not None and opaque:
        raise InputError("a model of jagged inputs has no opaque modules yet")
    return Example(arguments, leaves, bound, call, varying)


def of_exported(exported: torch.export.ExportedProgram) -> Example:
    """Of a program that is exported already; it may carry none."""
    arguments = _named(exported)
    leaves = named_leaves(arguments(*exported.example_inputs)) if exported.example_inputs else {}
    return Example(arguments, leaves, None, None, {})


def _bound(arguments: Arguments, example: Any) -> inspect.BoundArguments:
    if isinstance(example, Mapping):
        return arguments.bind((), dict(example))
    if isinstance(example, torch.Tensor):
        return arguments.bind((example,), {})
    if isinstance(example, tuple | list):
        return arguments.bind(tuple(example), {})
    raise InputError(
        f"example is {type(example).__name__}; pass the tuple of positional inputs or a dict of keyword inputs"
        f"{as_a_tensor(example)}"
    )


def _named(exported: torch.export.ExportedProgram) -> Arguments:
    """By the names that the program was exported with; an archive without names takes `args_0`, `args_1`, ..."""
    call = exported.module_call_graph[0].signature
    names = list(call.forward_arg_names or []) if call is not None else []
    if not names and exported.example_inputs:
        args, kwargs = exported.example_inputs
        names = [*(f"args_{i}" for i in range(len(args))), *kwargs]
    return Arguments.named(names)
