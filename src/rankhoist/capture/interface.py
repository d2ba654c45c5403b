"""The interface of a model: what its callers see of it, and all that scoring needs beside graphs and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils import _pytree as pytree

from rankhoist.capture.bags import call
from rankhoist.capture.inputs import CONSTANTS, Constant, InputSpec, missing_inputs, named_leaves
from rankhoist.capture.packs import Pack, apart, joined, opened, packed
from rankhoist.capture.signature import Arguments, plain_tensors
from rankhoist.errors import InputError


@dataclass(frozen=True)
class Interface:
    """How a model is called, what it returns and what its weights are called.

    Attributes:
        inputs: placeholder name -> what the user calls it and whether it is context.
        out_spec: the structure the model returns.
        in_spec: the structure of a call, `(args, kwargs)`, with the inputs' tensors as leaves in the order of `inputs`,
            and the constants at their places among them.
        arguments: binds a call's arguments to parameter names, as the model's signature does.
        state: name in the state dict -> placeholder name, of the weights that are in the state dict.
        dtype: the floating dtype the model was captured in.
        device: where its weights were.
        example: the example's tensors by input name (empty where an exported program carries none).
        made_up: its rows are nobody's: a file holds such ones, unless those that were given are wanted.
        constants: arguments that are no tensors, in the order of their places.
        packs: how leaves of a call are made of jagged inputs.
    """

    inputs: dict[str, InputSpec]
    out_spec: pytree.TreeSpec
    in_spec: pytree.TreeSpec
    arguments: Arguments
    state: dict[str, str]
    dtype: torch.dtype
    device: torch.device
    example: dict[str, Any]
    made_up: bool = False
    constants: tuple[Constant, ...] = ()
    packs: tuple[Pack, ...] = ()

    @cached_property
    def jagged(self) -> bool:
        """Whether an input is jagged."""
        return any(spec.bags for spec in self.inputs.values())

    @cached_property
    def varying(self) -> bool:
        """Whether an axis of an input varies, beside the rows."""
        return any(spec.varying for spec in self.inputs.values())

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(spec.name for spec in self.inputs.values())

    def call(self, leaves: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of a call, from its inputs by name."""
        leaves = joined(leaves, self.packs)
        own = {spec.name: leaves[spec.name] for spec in self.inputs.values()}
        return call(self.in_spec, own, self.packs, self.constants)

    def leaves(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A call's tensors by input name, checked against the inputs the model was captured with; bags may be given by
        name.
        """
        given = self.arguments(args, apart(kwargs, self.packs) if self.packs else kwargs)
        if self.jagged:
            leaves = packed(named_leaves(opened(given)), self.packs)
        else:
            leaves = given if plain_tensors(given) else named_leaves(given)
        if not self.constants and leaves.keys() == self._names:
            return leaves
        known = [spec.name for spec in self.inputs.values()]
        missing = [name for name in known if name not in leaves]
        if missing:
            raise missing_inputs(missing, leaves, given=given)
        self.check_others(given, leaves, known, "inputs")
        return {name: leaves[name] for name in known}

    def result(self, leaves: Sequence[Any]) -> Any:
        """What the model returns, from its leaves."""
        return leaves[0] if self._one_tensor else pytree.tree_unflatten(list(leaves), self.out_spec)

    @cached_property
    def _one_tensor(self) -> bool:
        return self.out_spec.is_leaf()

    def check_others(
        self, given: Mapping[str, Any], leaves: Mapping[str, Any], names: Sequence[str], what: str
    ) -> None:
        """Beside inputs of these `names` there are constants alone: another would be ignored, as the model need not.

        What is no tensor must be as it was, whether it is given or left to its default.

        Raises:
            InputError: a constant is another, or a leaf is no input.
        """
        known = {c.name: c.value for c in self.constants}
        defaults = {p.name: p.default for p in self.arguments.parameters if isinstance(p.default, CONSTANTS)}
        passed = {name: leaves.get(name, defaults.get(name, value)) for name, value in known.items()}
        left_out = defaults.keys() - known.keys() - {spec.name for spec in self.inputs.values()}
        others = {n: v for n, v in given.items() if n in left_out and (isinstance(v, CONSTANTS) or n in leaves)}
        constants = passed | others
        for name, value in constants.items():
            fixed = known[name] if name in known else defaults[name]
            if type(value) is not type(fixed) or value != fixed:
                shown = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
                raise InputError(
                    f"argument {name!r} is {shown}; the model was hoisted for {fixed!r}, as a constant. Hoist it "
                    "once more for another value."
                )
        unknown = [n for n, x in leaves.items() if x is not None and n not in names and n not in constants]
        if unknown:
            raise InputError(f"not {what}: {', '.join(unknown)}; the {what} are {', '.join(names) or 'none'}")
