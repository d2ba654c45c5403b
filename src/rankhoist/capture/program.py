"""The captured program: a functional ATen graph, its inputs by name, its weights and its output structure."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from rankhoist.capture import archive, onnx
from rankhoist.capture.asked import asked
from rankhoist.capture.bags import MODEL, BagNames
from rankhoist.capture.checks import check_operators, check_outputs, check_results, check_states, mutated
from rankhoist.capture.composites import few_prepared, is_functional, taken_apart
from rankhoist.capture.defaults import fill
from rankhoist.capture.effects import without_checks_of_kinds, without_tokens
from rankhoist.capture.empty import leave_out_empty
from rankhoist.capture.example import Example, of_exported, of_module
from rankhoist.capture.inference import ordinary_weights
from rankhoist.capture.inputs import Constant, Context, InputSpec, opened_names, own_rows
from rankhoist.capture.interface import Interface
from rankhoist.capture.one_number import written_out
from rankhoist.capture.opaque import OpaqueCall, kept
from rankhoist.capture.packs import Pack
from rankhoist.capture.reached import by_their_names
from rankhoist.capture.recurrent import of_any_length
from rankhoist.capture.signature import Arguments
from rankhoist.capture.sparse import check_no_sparse, sparse_in_parts
from rankhoist.capture.stand_ins import exported
from rankhoist.capture.true_places import by_masks, counted
from rankhoist.capture.unread import unread
from rankhoist.capture.users import jagged_users, plain_users
from rankhoist.capture.varying import Dynamic
from rankhoist.capture.wrappers import unwrapped
from rankhoist.errors import CaptureError, ExportError, InputError, UnsupportedModelError

EXPORTS = threading.RLock()  # one at a time: functions of PyTorch stand for others meanwhile, in the whole process
Model = nn.Module | Callable[..., Any] | torch.export.ExportedProgram  # what is called is a method of a module


@dataclass(frozen=True)
class Weight:
    """A parameter, buffer or plain tensor attribute of the model, by its name in the model.

    `trained` are parameters, and the buffers that a model in training mode writes.
    """

    name: str
    tensor: torch.Tensor
    in_state_dict: bool
    trained: bool

    @property
    def fixed(self) -> bool:
        """No training changes it: whole numbers, plain attributes, masks; not a vector that a norm may keep."""
        kept_by_norm = self.in_state_dict and self.tensor.dim() < 2
        exact = not (self.tensor.is_floating_point() or self.tensor.is_complex())
        return exact or not (self.trained or kept_by_norm)


@dataclass(frozen=True)
class Program:
    """What the compiler analyses.

    Attributes:
        graph: ATen operators only, functional; every node carries `meta["val"]` with symbolic sizes, and all arguments
            that its operator takes by position, defaults too (see `defaults`).
        rows: the one symbol for the number of rows.
        inputs: placeholder name -> what the user calls it and whether it is context.
        weights: placeholder name -> weight.
        outputs: nodes (or constants) in the order of `out_spec`'s leaves.
        out_spec: the structure the model returns.
        in_spec: the structure of a call, `(args, kwargs)`, with the inputs' tensors as leaves in the order of `inputs`.
        arguments: binds a call's arguments to parameter names, as the model's signature does.
        dtype: the floating dtype the model computes in.
        device: where its weights are; without any, where its inputs are.
        example: the example's tensors by input name (empty where an exported program carries none).
        constants: arguments that are no tensors.
        training: it is to be trained: it is captured in the mode that each module is in, and is differentiated.
        written: placeholders of the buffers that it writes; their new values are the last of `outputs`.
        dropout: whether dropout on what is the request's draws a mask for every one of its `rows`, or per `request`.
        opaque: calls of modules that are kept as they are, by the name that the graph has for them.
        modules: these modules, by path.
        packs: how leaves of a call are made of jagged inputs.
        bags: the placeholders of a jagged input's lengths and columns -> the name of what a stage reads there.
        lengths: the symbols of axes that vary, and what plans take them for: what the example has.
        places: the symbols of how many places a mask chooses, and what plans take them for: all that it has.
        asked: placeholders of the weights whose values the model's own Python asked for, or by which something was left
            out that nobody reads.
        wider: the program as it was captured, where this one leaves out what nobody reads.
        fills: captured operators whose scores are filled with a number, and that number. This is equal to `wider` where
            it lies far below the highest of them, which are the last of `outputs`.
        narrower: without what nobody reads, once that is made; True: also on conditions (see `fills`).
    """

    graph: fx.Graph
    rows: sympy.Symbol
    inputs: dict[str, InputSpec]
    weights: dict[str, Weight]
    outputs: list[Any]
    out_spec: pytree.TreeSpec
    in_spec: pytree.TreeSpec
    arguments: Arguments
    dtype: torch.dtype
    device: torch.device
    example: dict[str, Any]
    constants: tuple[Constant, ...] = ()
    training: bool = False
    written: tuple[str, ...] = ()
    dropout: str = "rows"
    opaque: dict[str, OpaqueCall] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    packs: tuple[Pack, ...] = ()
    bags: dict[str, str] = field(default_factory=dict)
    lengths: dict[sympy.Symbol, int] = field(default_factory=dict)
    places: dict[sympy.Symbol, sympy.Expr] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()
    wider: Program | None = None
    fills: tuple[tuple[str, float], ...] = ()
    narrower: dict[bool, Program] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def captured(self) -> Program:
        """With everything that its author wrote."""
        return self.wider or self

    @property
    def returned(self) -> list[Any]:
        """The outputs that a caller asked for."""
        return self.outputs[: len(self.outputs) - len(self.fills)]

    @property
    def supposed(self) -> list[tuple[tuple[str, float], fx.Node]]:
        """`fills`, and the highest scores of each."""
        return list(zip(self.fills, self.outputs[len(self.returned) :], strict=True))

    @property
    def interface(self) -> Interface:
        """What its callers see."""
        state = {w.name: p for p, w in self.weights.items() if w.in_state_dict}
        return Interface(
            self.inputs, self.out_spec, self.in_spec, self.arguments, state, self.dtype, self.device, self.example,
            constants=self.constants, packs=self.packs,
        )  # fmt: skip


def capture(
    model: Model | str | os.PathLike[str], example: Any, context: Context,
    known: Container[Any] | None = None, training: bool = False, item: Context | None = None,
    opaque: Sequence[str] = (), jagged: BagNames | None = None, dynamic: Dynamic | None = None,
) -> Program:  # fmt: skip
    """Export `model` once, with a symbolic row count, and make the graph functional.

    Operators that are made of others are taken apart, but those that are `known` (None: all are). Of a wrapper, it is
    the model inside; of a method of a module, what that computes; of a TorchScript module, what torch's own converter
    makes of it. A model that is to be trained (`training`) is captured with every module in the mode that it is in.
    Modules at the paths `opaque` are kept as they are.

    Raises:
        TrainingModeError: a module is in training mode.
        CaptureError: the model is none.
        InputError: the example does not fit the model, or its row counts differ.
        ContextError: `context` or `item` names inputs or columns that do not exist, or all of them, or both the same.
        ExportError: `torch.export` refuses the model, or cannot make it functional.
        UnsupportedModelError: the model draws random numbers, writes to its buffers or is quantised.
    """
    if isinstance(model, str | os.PathLike):
        model, example = _load(Path(model), example)
    if not isinstance(model, torch.export.ExportedProgram):
        model = unwrapped(model)
        call = of_module(model, example, training, bool(opaque), jagged or {}, dynamic or {})
    elif jagged or dynamic:
        said = "jagged inputs need" if jagged else "dynamic needs"
        raise InputError(f"{said} the module itself, not a program that is exported already: that has its own axes")
    else:
        call = of_exported(model)
    if call.bound is not None and call.jagged is None:  # containers of bags have names of their own
        context = opened_names(context, call.bound.arguments)
        item = None if item is None else opened_names(item, call.bound.arguments)
    with (
        EXPORTS,
        ordinary_weights(model),
        sparse_in_parts(model),
        kept(model, call.bound, opaque) as calls,
        asked() as names,
    ):
        if isinstance(model, nn.Module) and call.bound is not None:
            made = exported(model, call.bound, training, call.jagged, call.varying)
        else:
            made = model  # type: ignore[assignment]
        ours = made is not model and not training  # others may use theirs on
        check_no_sparse(made)
        functional = _functional(made, known, ours, training)
    without_tokens(functional)
    without_checks_of_kinds(functional.graph)
    by_their_names(functional)
    fill(functional.graph)
    if not training:  # a gradient of nothing is zeros, one that is missing is not
        leave_out_empty(functional.graph)
    program = _program(functional, call, (context, item), training)
    modules = {path: model.get_submodule(path) for path in opaque} if isinstance(model, nn.Module) else {}
    held = frozenset(p for p, w in program.weights.items() if w.name in names)
    return replace(program, opaque=calls, modules=modules, asked=held)


def _functional(
    exported: torch.export.ExportedProgram, known: Container[Any] | None, ours: bool, training: bool
) -> torch.export.ExportedProgram:  # fmt: skip
    """Without operators that write in place; whole ones stay whole, but those made of others that are not `known`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
            if ours and is_functional(exported):
                exported.graph.eliminate_dead_code()
            else:
                with of_any_length(), unread(), few_prepared(exported):
                    exported = exported.run_decompositions({})
            written_out(exported.graph_module.graph)
            by_masks(exported.graph_module.graph)
            return exported if known is None else taken_apart(exported, known, training)
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).strip()[:1500]}{_taken_names(exported)}"
        raise ExportError(f"torch cannot make the exported model functional: {text}") from error


def _taken_names(exported: torch.export.ExportedProgram) -> str:
    """Advice, where a part of the model is named like something that every graph module of torch has."""
    taken = {*dir(fx.GraphModule({}, fx.Graph()))}
    names = taken & {name.partition(".")[0] for name in [*exported.state_dict, *exported.constants]}
    if not names:
        return ""
    return f"; torch cannot export a part named {min(names)!r}: rename it, or put the model inside another module"


def _load(path: Path, example: Any) -> tuple[nn.Module | torch.export.ExportedProgram, Any]:
    """What a file holds, and an example of a call."""
    if not path.exists():
        raise CaptureError(f"no such file: {path}")
    if path.suffix != onnx.SUFFIX:
        return archive.carried(path), example
    model = onnx.read(path)
    example = model.example(example)
    onnx.check_alike(model, path, example)
    return model, (example,)


def _program(exported: torch.export.ExportedProgram, given: Example, sides: Any, training: bool) -> Program:
    graph, example, jagged = exported.graph_module.graph, own_rows(given.leaves), given.jagged
    signature = exported.graph_signature
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    prefix = "" if jagged is None else f"{MODEL}."
    written = {name.removeprefix(prefix): made for name, made in mutated(signature)}
    weights, users = {}, []
    for spec in signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            users.append(placeholders[spec.arg.name])
        elif spec.kind is not InputKind.TOKEN:
            name = spec.target.removeprefix(prefix)
            weights[spec.arg.name] = _weight(exported, spec, name, name in written)
    check_outputs(signature, training)
    if jagged is None:
        found = plain_users(users, example, exported.range_constraints, *sides)
    else:
        found = jagged_users(users, jagged, *sides)
    check_operators(graph, training)
    check_states(graph)
    call = exported.module_call_graph[0].signature
    if call is None:
        raise CaptureError("the exported program has no call signature")
    last = next(node for node in graph.nodes if node.op == "output")
    kinds = [s.kind for s in signature.output_specs if s.kind is not OutputKind.TOKEN]
    returned = zip(last.args[0], kinds, strict=True)  # what is written to inputs is returned as well
    outputs = [o for o, kind in returned if kind is OutputKind.USER_OUTPUT]
    check_results(outputs, found.rows)
    renewed = {o.name: o for o in last.args[0] if isinstance(o, fx.Node)}
    outputs += [renewed[made] for made in written.values()]
    buffers = {w.name: placeholder for placeholder, w in weights.items()}
    tensors = [w.tensor for w in weights.values()] + [u.meta["val"] for u in found.nodes]
    constants = {c.name for c in found.constants}
    in_spec, packs = (call.in_spec, ()) if jagged is None else (jagged.in_spec, jagged.packs)
    return Program(
        graph, found.rows, found.inputs, weights, outputs, call.out_spec, in_spec, given.arguments,
        _floating_dtype(tensors), next((t.device for t in tensors), torch.device("cpu")),
        {n: x for n, x in example.items() if n not in constants}, found.constants, training,
        tuple(buffers[n] for n in written), packs=packs, bags=found.bags, lengths=found.lengths,
        places=counted(graph),
    )  # fmt: skip


def _weight(exported: torch.export.ExportedProgram, spec: Any, own: str, written: bool) -> Weight:
    """By its `own` name, that in the model."""
    if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        kind = type(exported.constants.get(spec.target, spec)).__name__
        draws = ": it draws random numbers, so equal scores have no meaning" if kind == "Generator" else ""
        raise UnsupportedModelError(f"the model has a {kind}, {own!r}, and only tensors can be hoisted{draws}")
    name = spec.target
    if name in exported.state_dict:
        trained = spec.kind is InputKind.PARAMETER or written
        return Weight(own, exported.state_dict[name].detach(), True, trained)
    return Weight(own, exported.constants[name].detach(), False, written)


def _floating_dtype(tensors: list[torch.Tensor]) -> torch.dtype:
    floating = [t.dtype for t in tensors if t.is_floating_point()]
    return max(set(floating), key=floating.count) if floating else torch.float32
