"""The model's own signature: which argument of a call is which input."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rankhoist.capture.inputs import Split
from rankhoist.errors import InputError

VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


KINDS = (torch.Tensor, Split)


class Arguments:
    """Binds a call's arguments to parameter names, in the order of the signature.

    A dict of features is one positional argument where its keys are no parameters of a one-argument model.
    """

    def __init__(self, signature: inspect.Signature) -> None:
        self.signature = signature
        self.parameters = list(signature.parameters.values())
        simple = not any(p.kind in VARIADIC or p.kind is inspect.Parameter.KEYWORD_ONLY for p in self.parameters)
        self._names = [p.name for p in self.parameters] if simple else None

    @staticmethod
    def of(forward: Callable[..., Any]) -> Arguments:
        """Of a function or bound method."""
        return Arguments(inspect.signature(forward))

    @staticmethod
    def named(names: Sequence[str]) -> Arguments:
        """Of a program that takes these inputs, by position or by name."""
        return Arguments(
            inspect.Signature([inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names])
        )

    def given_as(self, by_name: bool) -> Arguments:
        """The same, all by name or all by position: of a model with hooks that see how its arguments are given."""
        kind = inspect.Parameter.KEYWORD_ONLY if by_name else inspect.Parameter.POSITIONAL_ONLY
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return Arguments(inspect.Signature([p.replace(kind=kind) if p.kind is plain else p for p in self.parameters]))

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if self._names is not None and not kwargs and len(args) == len(self._names):
            return dict(zip(self._names, args, strict=True))
        return dict(self.bind(args, kwargs).arguments)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        """As Python binds them.

        Raises:
            InputError: they do not fit.
        """
        args, kwargs = self.as_call(args, kwargs)
        try:
            return self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"the inputs do not fit the model's signature {self.signature}: {error}") from error

    def as_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments, a dict of features as the one positional argument."""
        one = len(self.parameters) == 1 and self.parameters[0].kind not in VARIADIC
        if one and not args and kwargs and self.parameters[0].name not in kwargs:
            return (dict(kwargs),), {}
        return tuple(args), dict(kwargs)


def by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments with each of `**features` by its own name."""
    kinds = {p.name: p.kind for p in bound.signature.parameters.values()}
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        found |= value if kinds[name] is inspect.Parameter.VAR_KEYWORD else {name: value}
    return found


@contextlib.contextmanager
def naming(model: nn.Module, bound: inspect.BoundArguments) -> Iterator[None]:
    """A `forward(**features)` says which features it is called with: torch 2.13 counts their sizes twice otherwise.

    Raises:
        InputError: a feature has a name that no argument can have.
    """
    parameters = list(bound.signature.parameters.values())
    if not parameters or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        yield
        return
    *others, _ = parameters
    own = vars(model).get("forward")
    given = bound.arguments.get(parameters[-1].name, {})

    @functools.wraps(model.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return before(*args, **kwargs)

    if odd := [name for name in given if not name.isidentifier()]:
        raise InputError(
            f"input {odd[0]!r} is given by keyword and has no name of a Python argument: let the model take a dict"
        )
    before = model.forward
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in given]
    forward.__signature__ = inspect.Signature([*others, *named])  # type: ignore[attr-defined]
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


def plain_tensors(arguments: Mapping[str, Any]) -> bool:
    """Whether every argument is one input, so that its name is the parameter's."""
    return not [v for v in arguments.values() if not isinstance(v, KINDS)]
