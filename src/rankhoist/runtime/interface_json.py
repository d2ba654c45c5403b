"""How a model is called, as plain data: its inputs, its parameters, the structures of a call and of its result."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rankhoist.capture import Constant, InputSpec, Interface, Varying
from rankhoist.capture.inputs import CONSTANTS, Column
from rankhoist.capture.packs import Pack
from rankhoist.capture.signature import Arguments
from rankhoist.errors import ArtifactError
from rankhoist.runtime.plain import as_device, as_dtype, counts, dtype_name, entries, entry, shown
from rankhoist.runtime.structure_json import as_structure, structure

ROLES = ("context", "candidate", "packed")
WIDEST = 2**20  # columns of a packed input, which are listed one by one


def to_data(interface: Interface) -> dict[str, Any]:
    """An interface as data for JSON, without its weights' names and its example.

    Raises:
        ArtifactError: its inputs or results are containers that a file cannot hold.
    """
    return {
        "captured": {"dtype": dtype_name(interface.dtype), "device": str(interface.device)},
        "inputs": [_input(name, spec) for name, spec in interface.inputs.items()],
        "parameters": [
            {"name": p.name, "kind": p.kind.name, "optional": p.default is not p.empty}
            for p in interface.arguments.parameters
        ],
        "packs": [{k: list(v) if isinstance(v, tuple) else v for k, v in vars(p).items()} for p in interface.packs],
        "constants": [{"name": c.name, "place": c.place, "value": c.value} for c in interface.constants],
        "call": structure(interface.in_spec, "takes", named=True),
        "result": structure(interface.out_spec, "returns", named=True),
    }


def from_data(data: Any, state: Mapping[str, str]) -> Interface:
    """The inverse of `to_data`, with the placeholders of the weights in `state` and without an example.

    Raises:
        ArtifactError: the data is none that `to_data` makes.
    """
    inputs = {entry(item, "placeholder", str): _as_input(item) for item in entries(data, "inputs", dict)}
    call, result = as_structure(entry(data, "call", dict)), as_structure(data.get("result"))
    constants = tuple(_as_constant(item) for item in entries({"constants": [], **data}, "constants", dict))
    packs = tuple(_as_pack(item) for item in entries({"packs": [], **data}, "packs", dict))
    places = [c.place for c in constants]
    packed = {name for pack in packs for name in pack.inputs}
    if not packed <= {spec.name for spec in inputs.values() if spec.bags}:
        raise ArtifactError("it makes leaves of a call of jagged inputs that it does not have")
    tensors = call.num_leaves - len(places) - sum(len(pack.places) for pack in packs) + len(packed)
    if tensors != len(inputs) or places != sorted({place for place in places if place < call.num_leaves}):
        raise ArtifactError(f"it takes {tensors} tensors and lists {len(inputs)} inputs")
    parameters = [_as_parameter(item) for item in entries(data, "parameters", dict)]
    captured = entry(data, "captured", dict)
    return Interface(
        inputs, result, call, Arguments(inspect.Signature(parameters)), dict(state),
        as_dtype(entry(captured, "dtype", str)), as_device(entry(captured, "device", str)), {},
        constants=constants, packs=packs,
    )  # fmt: skip


# -- inputs


def _input(placeholder: str, spec: InputSpec) -> dict[str, Any]:
    return {
        "placeholder": placeholder,
        "name": spec.name,
        "shape": list(spec.shape),
        "dtype": dtype_name(spec.dtype),
        "role": spec.role,
        "columns": list(spec.columns),
        "item": spec.item,
        "item_columns": list(spec.item_columns),
        "varying": [{"axis": v.axis, "length": v.length, "low": v.low, "high": v.high} for v in spec.varying],
        "bags": [{"name": c.name, "shape": list(c.shape), "dtype": dtype_name(c.dtype)} for c in spec.bags],
    }


def _as_input(data: Any) -> InputSpec:
    name, role = entry(data, "name", str), entry(data, "role", str)
    shape, columns = counts(data, "shape"), counts(data, "columns")
    of_item = {"item": False, "item_columns": [], **data}  # before items had a store, files said nothing of them
    item, item_columns = entry(of_item, "item", bool), counts(of_item, "item_columns")
    fits = (role != "packed" or _are_columns(columns, shape)) and (
        not item_columns or _are_columns(item_columns, shape)
    )
    apart = not set(columns) & set(item_columns) and not (item and (item_columns or role == "context"))
    if role not in ROLES or not fits or not apart:
        raise ArtifactError(f"its input {shown(name)} is {shown(role)} with columns that do not fit its shape")
    bags = tuple(
        Column(entry(item, "name", str), counts(item, "shape"), as_dtype(entry(item, "dtype", str)))
        for item in entries({"bags": [], **data}, "bags", dict)
    )
    if bags and (role == "packed" or shape):
        raise ArtifactError(f"its input {shown(name)} is jagged, and {shown(role)} with axes of its own")
    varying = tuple(_as_varying(item) for item in entries({"varying": [], **data}, "varying", dict))
    if varying and (role == "packed" or any(not 1 <= v.axis <= len(shape) for v in varying)):
        raise ArtifactError(f"its input {shown(name)} varies along axes that it does not have")
    dtype = as_dtype(entry(data, "dtype", str))
    return InputSpec(name, shape, dtype, role, columns, item, item_columns, bags, varying)


def _as_varying(data: Any) -> Varying:
    high = None if data.get("high") is None else counts({"high": [data["high"]]}, "high")[0]
    axis, low = (counts({key: [data.get(key)]}, key)[0] for key in ("axis", "low"))
    return Varying(axis, entry(data, "length", str), low, high)


def _as_pack(data: Any) -> Pack:
    inputs, names, fields = (tuple(entries(data, key, str)) for key in ("inputs", "names", "fields"))
    keys = None if data.get("keys") is None else tuple(entries(data, "keys", str))
    return Pack(counts(data, "places"), inputs, names, entry(data, "kind", str), keys, fields)


def _are_columns(columns: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether an input has these columns, and they are in order."""
    return len(shape) == 1 and shape[0] <= WIDEST and list(columns) == sorted({c for c in columns if c < shape[0]})


def _as_parameter(data: Any) -> inspect.Parameter:
    kind = vars(inspect.Parameter).get(entry(data, "kind", str))
    if not isinstance(kind, type(inspect.Parameter.VAR_KEYWORD)):
        raise ArtifactError(f"it has a parameter of kind {shown(data['kind'])}")
    default = ... if entry(data, "optional", bool) else inspect.Parameter.empty  # which one, a file does not say
    return inspect.Parameter(entry(data, "name", str), kind, default=default)


def _as_constant(data: Any) -> Constant:
    value = data.get("value")
    if not isinstance(value, CONSTANTS):
        raise ArtifactError(f"it has a constant {shown(value)}")
    return Constant(entry(data, "name", str), counts({"place": [data.get("place")]}, "place")[0], value)
