"""Modules that are kept as they are, where a hoisted model runs: with its weights, and in a file without their code.

A version of the weights has modules of its own, which share its tensors: new weights never change a call under way.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist.capture import Interface, OpaqueCall
from rankhoist.capture.inputs import CONSTANTS
from rankhoist.capture.opaque import Result, Structure
from rankhoist.errors import ArtifactError, BackendError, CaptureError, WeightsError
from rankhoist.runtime.container import RefusedError
from rankhoist.runtime.plain import as_dtype, as_kind, counts, dtype_name, entries, entry, shown
from rankhoist.runtime.structure_json import as_structure, structure


@dataclass(frozen=True)
class Kept:
    """One call of a kept module, as a stage makes it: tensors in, tensors out."""

    call: OpaqueCall
    module: nn.Module
    dtypes: tuple[torch.dtype, ...]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the module returns.

        Raises:
            CaptureError: it returns something else than on the example.
        """
        rows = self.call.rows(tensors)
        if not rows:  # few modules take none
            results = zip(self.call.results, self.dtypes, strict=True)
            return [tensors[0].new_empty(r.sizes(0), dtype=dtype) for r, dtype in results]
        args, kwargs = self.call.given.filled(tensors)
        returned, made = Structure.of(self.module(*args, **kwargs))
        expected = [(r.sizes(rows), dtype) for r, dtype in zip(self.call.results, self.dtypes, strict=True)]
        if returned != self.call.returned or [(list(t.shape), t.dtype) for t in made] != expected:
            raise CaptureError(
                f"opaque module {self.call.module!r} returns {[list(t.shape) for t in made]} for {rows} rows, and was "
                f"hoisted for {[sizes for sizes, _ in expected]}: its results need sizes that no value decides"
            )
        return made


def kept_modules(
    calls: Mapping[str, OpaqueCall], modules: Mapping[str, nn.Module], interface: Interface,
    original: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
) -> dict[str, Kept]:  # fmt: skip
    """The calls of a model by name, with modules that have these weights."""
    own = {path: _with_weights(path, module, interface, original, dtype, device) for path, module in modules.items()}

    def moved(result: Result) -> torch.dtype:
        return dtype if result.dtype == interface.dtype else result.dtype

    return {n: Kept(call, own[call.module], tuple(map(moved, call.results))) for n, call in calls.items()}


def _with_weights(
    path: str, module: nn.Module, interface: Interface, original: Mapping[str, Tensor], dtype: torch.dtype,
    device: torch.device,
) -> nn.Module:  # fmt: skip
    """A copy of a module that shares a model's weights; what else it has is copied."""
    memo: dict[int, Any] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        weight = original[interface.state[f"{path}.{name}"]]
        memo[id(tensor)] = nn.Parameter(weight, requires_grad=False) if isinstance(tensor, nn.Parameter) else weight
    try:
        made = copy.deepcopy(module, memo)
    except Exception as error:
        raise WeightsError(f"opaque module {path!r} cannot be copied ({type(error).__name__}: {error})") from error
    return made.to(device, dtype).eval() if dtype != interface.dtype else made.to(device).eval()


def check_exported(modules: Iterable[str], how: str) -> None:
    """Refuse to export a model with modules that are kept.

    Raises:
        BackendError: it has one; says which.
    """
    for path in modules:
        raise BackendError(
            f"{how} does not take module {path!r}, which is kept as it is (opaque) and runs as Python. Save the model "
            "(`save`), or hoist it without this module and hand its result in as an input"
        )


# -- in a file


def to_data(calls: Mapping[str, OpaqueCall]) -> list[dict[str, Any]]:
    """Calls as data for JSON.

    Raises:
        ArtifactError: a module takes or returns containers that a file cannot hold.
    """

    def nest(own: Structure, verb: str) -> dict[str, Any]:
        constants = [{"place": place, "value": value} for place, value in own.constants.items()]
        return {"structure": structure(own.spec, verb), "constants": constants}

    return [
        {
            "name": name, "module": call.module, "kind": call.kind, "multiply_adds": call.multiply_adds,
            "given": nest(call.given, "gives a module"), "axes": list(call.axes),
            "returned": nest(call.returned, "has a module that returns"),
            "results": [{"shape": list(r.shape), "axis": r.axis, "dtype": dtype_name(r.dtype)} for r in call.results],
        }
        for name, call in calls.items()
    ]  # fmt: skip


def from_data(data: Sequence[Any]) -> dict[str, OpaqueCall]:
    """The inverse of `to_data`.

    Raises:
        ArtifactError: the data is none that `to_data` makes.
    """
    return {entry(item, "name", str): _call(item) for item in data}


def _call(data: Any) -> OpaqueCall:
    results = []
    for item in entries(data, "results", dict):
        shape, axis = counts(item, "shape"), counts({"axis": [item.get("axis")]}, "axis")[0]
        results.append(Result(shape, min(axis, len(shape)), as_dtype(entry(item, "dtype", str))))
    axes = tuple(None if a is None else as_kind(a, int) for a in entry(data, "axes", list))
    return OpaqueCall(
        entry(data, "module", str), entry(data, "kind", str), _nest(data, "given"), axes, _nest(data, "returned"),
        tuple(results), entry(data, "multiply_adds", int),
    )  # fmt: skip


def _nest(data: Any, key: str) -> Structure:
    own, constants = entry(data, key, dict), {}
    for item in entries(own, "constants", dict):
        place, value = counts({"place": [item.get("place")]}, "place")[0], item.get("value")
        if not isinstance(value, CONSTANTS):
            raise ArtifactError(f"it has a constant {shown(value)}")
        constants[place] = value
    return Structure(as_structure(own.get("structure")), constants)


def given(
    calls: Mapping[str, OpaqueCall], interface: Interface, modules: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """The modules that a file needs, of those that its reader has; it holds their weights, and nobody's code.

    Raises:
        ArtifactError: one is missing, or takes other weights.
    """
    kinds = {call.module: call.kind for call in calls.values()}
    missing = [path for path in kinds if path not in modules]
    if missing:
        listed = ", ".join(f"{path!r}: a module of class {kinds[path]}" for path in missing)
        raise RefusedError(
            f"it needs modules that no file holds: pass rankhoist.load(path, opaque={{{listed}}}), made as it was for "
            "training; its weights are in the file"
        )
    for path, kind in kinds.items():
        names = {f"{path}.{name}" for name in modules[path].state_dict()}
        saved = {name for name in interface.state if name.startswith(f"{path}.")}
        if names != saved:
            other = sorted(names ^ saved)[0]
            raise ArtifactError(f"opaque module {path!r} is no {kind} as it was saved: weight {other!r} is one's alone")
    return {path: modules[path] for path in kinds}
