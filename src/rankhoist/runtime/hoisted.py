"""The hoisted model: called like the original, with one row of context per request."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist.capture import Interface, Program, Split
from rankhoist.capture.inputs import named_leaves
from rankhoist.compiler.emit import Stage, Stages
from rankhoist.compiler.plan import Plan, Plans, PlanSummary, single
from rankhoist.compiler.targets.backends import backend_of
from rankhoist.errors import InputError, WeightsError
from rankhoist.report import Report
from rankhoist.report.certificate import Certificate
from rankhoist.runtime import aoti, onnx
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.offsets import Offsets, bounds_and_counts
from rankhoist.runtime.retarget import retargeted


@dataclass(frozen=True)
class Weights:
    """One version of the weights: originals by placeholder, and what the weights stage made of them.

    `folded` are what the weights stage returns, which plans share.
    `arguments` are those of every plan's (request, candidate) stage: a weight, or what each call puts in its place: the
    number of a node of the state, or the name of an input.
    """

    original: dict[str, Tensor]
    constants: dict[str, Tensor]
    folded: Sequence[Tensor]
    arguments: list[tuple[list[Tensor | int | str], list[Tensor | int | str]]]


@dataclass(frozen=True)
class RequestState:
    """The context work of `requests` requests, tied to the weights it was computed with; reusable and read-only.

    `plan` is the number of the plan that it was computed for, and that scores it.
    """

    requests: int
    tensors: dict[int, Tensor]
    weights: Weights
    plan: int = 0

    @property
    def bytes(self) -> int:
        """Memory held by the state's tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


class HoistedModel(nn.Module):
    """An equal model that computes context work once per request.

    Call it like the original, context tensors with one row per request: `[R, ...]`, candidate tensors with one row per
    candidate: `[N, ...]`. Results have N rows. With R > 1 (or 0), `request_offsets` gives the R + 1 boundaries of the
    requests' candidate blocks, which may be empty. A packed input is given as `rankhoist.Split(context, candidate)`.

    It computes scores, not gradients. Weights are shared with the original model, not copied (but for constant masks
    and indices, which must not change): after changing them in place, call `update_weights`.
    Calls from several threads at once are safe, also while `update_weights` runs.

    `certificate` is the one in the file that it was loaded from, as plain data, until its weights change.
    """

    backend = "eager"

    def __init__(self, program: Program, plans: Plans[Plan] | Plan) -> None:
        blueprint = Blueprint.of(program, plans if isinstance(plans, Plans) else single(plans))
        # What the plans were made from is copied, so that a change of it in place is noticed.
        original = {n: w.tensor.clone() if n in blueprint.pinned else w.tensor for n, w in program.weights.items()}
        self._build(blueprint, original, blueprint.stages.constants, program.dtype, program.device)

    @classmethod
    def of(
        cls, blueprint: Blueprint, original: dict[str, Tensor], constants: dict[str, Tensor],
        dtype: torch.dtype, device: torch.device, folded: Sequence[Tensor] | None = None,
    ) -> HoistedModel:  # fmt: skip
        """From a blueprint and weights by placeholder, which are in `dtype` and on `device`.

        `folded` is what the weights stage made of them before, if that is at hand: it is not run again.
        """
        made = cls.__new__(cls)
        made._build(blueprint, original, constants, dtype, device, folded)
        return made

    def _build(
        self, blueprint: Blueprint, original: dict[str, Tensor], constants: dict[str, Tensor],
        dtype: torch.dtype, device: torch.device, folded: Sequence[Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.blueprint = blueprint
        self._specs = {spec.name: spec for spec in self.interface.inputs.values()}
        self._roles = [(spec.name, spec.role) for spec in self._specs.values()]
        self._one_tensor = self.interface.out_spec.is_leaf()
        self.certificate: dict[str, Any] | None = None
        self._place(original, constants, dtype, device, folded)
        self.eval()

    @property
    def interface(self) -> Interface:
        """How it is called."""
        return self.blueprint.interface

    @property
    def program(self) -> Program | None:
        """The captured program; None where it was loaded from a file."""
        return self.blueprint.program

    @property
    def plans(self) -> Plans[PlanSummary]:
        """Its plans, and how many candidates and requests each is used for."""
        return self.blueprint.plans

    @property
    def plan(self) -> PlanSummary:
        """The plan for the workload that it was hoisted for."""
        return self.plans.main

    @property
    def level(self) -> str:
        """The level that was asked for; where nothing pays, its plan is that of a lower one."""
        return self.plan.asked.name.lower()

    @property
    def example(self) -> dict[str, Tensor]:
        """The example inputs by name, whole rows as they were given to `hoist`."""
        return dict(self.interface.example)

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype it computes in."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._device

    def report(self) -> Report:
        """Per captured operator: its rate, its work before and after, and why what stayed per candidate stayed."""
        return self.blueprint.report()

    def save(self, path: str | os.PathLike[str], certificate: Certificate | None = None) -> None:
        """Write it to one file, to be loaded by `rankhoist.load`, with a certificate if there is one: this one, or else
        that of the file it comes from.

        The file holds the weights of now, the graphs, plans and report as data, and the example inputs; nothing in it
        is ever run as code.

        Raises:
            ArtifactError: it holds something that a file cannot, or the file cannot be written.
        """
        from rankhoist.runtime.artifact import save  # which makes hoisted models, and so imports this

        save(self, path, certificate)

    # -- backends

    def to_backend(self, backend: str) -> HoistedModel:
        """Run the stages with `eager` (PyTorch, operator by operator) or `inductor` (torch.compile); returns itself.

        Stages compile at the first call that uses their plan, for tens of seconds (`warm_up` pays it before), and not
        again when the numbers of candidates and requests vary, nor after `update_weights`.

        Raises:
            BackendError: no such backend; later, at a stage's first call: it does not compile, or no compiler is found.
        """
        backend_of(backend)
        self.backend = backend
        self._place(self._weights.original, self._weights.constants, self._dtype, self._device)
        return self

    def warm_up(self, candidates: Sequence[int] = (), requests: Sequence[int] = (1,)) -> HoistedModel:
        """Compile what calls with these numbers of requests need, and of candidates in all: any, unless some are given.

        It scores made-up rows, the example's where it is known; returns itself.
        """
        for r in requests:
            for n in candidates or self._one_per_plan(r):
                offsets = [n * i // r for i in range(r + 1)]
                state = self.prepare(self.made_up("context", r), candidates=n)
                self.score(state, self.made_up("candidate", n), request_offsets=offsets)
        return self

    def _one_per_plan(self, requests: int) -> list[int]:
        """A number of candidates for every plan that so many requests use: 2 or more if it can be, one is special."""
        row = self.plans.ranges.row(requests)
        last = [*(r.first - 1 for r in row[1:]), max(row[-1].first, 2)]
        counts = {r.plan: min(max(r.first, 2), end) for r, end in zip(row, last, strict=True)}
        usual = self.plan.workload.candidates
        return list((counts | {self.plans.ranges.choose(usual, requests): usual}).values())

    def export_onnx(self, folder: str | os.PathLike[str], several: bool = False) -> None:
        """Write both stages as ONNX models; `rankhoist.runtime.load_onnx` runs them.

        Args:
            folder: for `request.onnx`, `candidate.onnx` and `manifest.json`, which names their inputs and outputs.
            several: also `several.onnx`, the candidate stage of several requests per call.

        Raises:
            BackendError: the extra `onnx` is not installed, or an operator has no ONNX counterpart.
        """
        onnx.export_onnx(self, folder, several)

    def package(self, folder: str | os.PathLike[str], several: bool = False) -> None:
        """Compile both stages ahead of time with AOTInductor; `rankhoist.runtime.load_package` runs them.

        A package is native code of this machine's kind, which runs when loaded: load only what you trust. A call from
        Python holds the interpreter lock from beginning to end, so threads do not score side by side.
        """
        aoti.package(self, folder, several)

    def made_up(self, side: str, rows: int) -> dict[str, Tensor]:
        """Rows of the `context` or of the `candidate` side: the example's, in turn; zeros where there is no example."""
        made = {}
        for name, (dtype, shape) in self._expected[side].items():
            rows_of = self.interface.example.get(name, torch.zeros(1, *shape))
            spec = self._specs[name]
            if spec.role == "packed" and name in self.interface.example:
                rows_of = rows_of[:, list(spec.columns if side == "context" else spec.candidate_columns)]
            made[name] = rows_of[torch.arange(rows) % len(rows_of)].to(self._device, dtype)
        return made

    # -- calls

    def forward(self, *args: Any, request_offsets: Offsets | None = None, **kwargs: Any) -> Any:
        """What the original returns for context rows repeated per candidate: N rows.

        Raises:
            InputError: an input is missing or has the wrong kind, shape or row count; offsets do not fit.
        """
        context, candidate = self._sides(self.interface.leaves(args, kwargs))
        rows = self._rows(candidate)
        if not torch.is_grad_enabled():  # entering and leaving no_grad is a good part of a call with few candidates
            return self._score(self._prepare(context, rows), candidate, request_offsets)
        with torch.no_grad():
            return self._score(self._prepare(context, rows), candidate, request_offsets)

    def _sides(self, leaves: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Context and candidate inputs by name; a packed input is one of each."""
        context, candidate = {}, {}
        for name, role in self._roles:
            value = leaves[name]
            if role == "context":
                context[name] = value
            elif role == "candidate":
                candidate[name] = value
            elif isinstance(value, Split):
                context[name], candidate[name] = value.context, value.candidate
            else:
                spec = self._specs[name]
                raise InputError(
                    f"packed input {name!r} is given as rankhoist.Split(context=[R, {len(spec.columns)}], "
                    f"candidate=[N, {len(spec.candidate_columns)}]), got {type(value).__name__}"
                )
        return context, candidate

    def prepare(self, context_inputs: Mapping[str, Any] | Sequence[Any], candidates: int | None = None) -> RequestState:
        """The context work of R requests: `{name: [R, ...]}` (or the context inputs in order) -> state.

        For a packed input, pass its context columns `[R, context columns]`. `candidates` is how many will be scored
        with the state, in all, if it is not what the model was hoisted for: it chooses the plan, not the scores.
        """
        with torch.no_grad():
            return self._prepare(self._by_name(context_inputs, ("context", "packed"), "context"), candidates)

    def score(
        self,
        state: RequestState,
        candidate_inputs: Mapping[str, Any] | Sequence[Any],
        request_offsets: Offsets | None = None,
    ) -> Any:
        """Scores of N candidates `{name: [N, ...]}` for a prepared state, as often as you like."""
        with torch.no_grad():
            given = self._by_name(candidate_inputs, ("candidate", "packed"), "candidate")
            return self._score(state, given, request_offsets)

    def _by_name(self, inputs: Any, roles: tuple[str, ...], what: str) -> dict[str, Any]:
        names = [s.name for s in self.interface.inputs.values() if s.role in roles]
        if not isinstance(inputs, Mapping):
            values = [inputs] if isinstance(inputs, Tensor) else list(inputs)
            if len(values) != len(names):
                raise InputError(f"expected {len(names)} {what} inputs ({', '.join(names)}), got {len(values)}")
            return dict(zip(names, values, strict=True))
        leaves = named_leaves({"inputs": dict(inputs)})
        missing = [n for n in names if n not in leaves]
        if missing:
            raise InputError(f"missing {what} inputs: {', '.join(missing)}; got {', '.join(leaves) or 'none'}")
        return {n: leaves[n] for n in names}

    def _prepare(self, context: dict[str, Tensor], candidates: int | None) -> RequestState:
        weights = self._weights
        requests = self._check(context, "context", default=1)
        workload = self.plan.workload
        expected = workload.candidates * requests // workload.requests if candidates is None else candidates
        number = self.plans.ranges.choose(expected, requests)
        variant = self.stages.variants[number]
        arguments = _filled(weights.arguments[number][0], {}, context)
        made = variant.request.run(requests, None, None, *arguments) if variant.state else ()
        return RequestState(requests, dict(zip(variant.state, made, strict=True)), weights, number)

    def _score(self, state: RequestState, candidate: dict[str, Tensor], request_offsets: Offsets | None) -> Any:
        rows = self._check(candidate, "candidate", default=0)
        offsets, owner = self._owners(state.requests, rows, request_offsets)
        stage = self.stages.variants[state.plan].candidate
        arguments = _filled(state.weights.arguments[state.plan][1], state.tensors, candidate)
        made = stage.run(rows, owner, offsets, *arguments)
        return made[0] if self._one_tensor else pytree.tree_unflatten(list(made), self.interface.out_spec)

    def _rows(self, candidate: dict[str, Any]) -> int:
        """Of the first candidate input; whether all agree is checked later."""
        first = next(iter(candidate.values()), None)
        return first.shape[0] if isinstance(first, Tensor) and first.dim() else 0

    def _owners(self, requests: int, rows: int, offsets: Offsets | None) -> tuple[Tensor | None, Tensor | None]:
        """Check block boundaries; one request needs neither owners nor offsets."""
        if offsets is None:
            if requests != 1:
                raise InputError(
                    f"the context has {requests} rows; pass request_offsets with {requests + 1} boundaries"
                )
            return None, None
        bounds, counts = bounds_and_counts(offsets, requests, rows)
        if requests == 1:
            return None, None
        owner = torch.repeat_interleave(torch.arange(requests, device="cpu"), counts)
        return bounds, owner.to(self._device)

    def _check(self, inputs: dict[str, Tensor], what: str, default: int) -> int:
        """Kinds, shapes and the common row count of inputs."""
        rows, same = -1, True
        for name, tensor in inputs.items():
            dtype, shape = self._expected[what][name]
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.shape[1:] != shape:
                _explain_input(name, tensor, what, dtype, shape)
            same = same and rows in (-1, tensor.shape[0])
            rows = tensor.shape[0]
        if not same:
            listing = ", ".join(f"{name}: {tensor.shape[0]}" for name, tensor in inputs.items())
            raise InputError(f"the {what} inputs have different row counts ({listing})")
        return default if rows < 0 else rows

    def _expect(self) -> dict[str, dict[str, tuple[torch.dtype, torch.Size]]]:
        """Dtype and shape of a row, by side and input."""
        expected: dict[str, dict[str, tuple[torch.dtype, torch.Size]]] = {"context": {}, "candidate": {}}
        for name, spec in self._specs.items():
            dtype = self._dtype if spec.dtype == self.interface.dtype else spec.dtype
            if spec.role == "packed":
                expected["context"][name] = dtype, torch.Size([len(spec.columns)])
                expected["candidate"][name] = dtype, torch.Size([len(spec.candidate_columns)])
            else:
                expected[spec.role][name] = dtype, torch.Size(spec.shape)
        return expected

    # -- weights

    @property
    def weights(self) -> Weights:
        """The version in use."""
        return self._weights

    def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """New weights for the same model: re-runs the weights stage; calls under way keep the version they started
        with.

        Raises:
            WeightsError: names or shapes differ, or a buffer that the plan was made from (an index, a mask) changed.
                The model is left as it was.
        """
        own = self.interface.state
        missing = [n for n in own if n not in state_dict]
        if missing:
            raise WeightsError(f"the state dict lacks {len(missing)} weights: {', '.join(missing[:5])}")
        original = dict(self._weights.original)
        for name, placeholder in own.items():
            old, new = original[placeholder], state_dict[name].detach()
            if new.shape != old.shape:
                raise WeightsError(f"weight {name!r} has shape {list(new.shape)}, expected {list(old.shape)}")
            new = new.to(device=old.device, dtype=old.dtype)
            if placeholder in self.blueprint.pinned and not torch.equal(new, old):
                raise WeightsError(
                    f"{name!r} selects positions, which the plan is made for; hoist the new model instead"
                )
            original[placeholder] = new
        self._install(original, self._weights.constants)
        self.certificate = None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The original model's weights under their original names."""
        return {name: self._weights.original[p] for name, p in self.interface.state.items()}

    def _install(
        self, original: dict[str, Tensor], constants: dict[str, Tensor], folded: Sequence[Tensor] | None = None
    ) -> None:
        if folded is None:
            folded = self._fold(original, constants)
        known: dict[int, Any] = dict(zip(self.stages.folded, folded, strict=True))
        inputs: dict[str, str] = {}
        for placeholder, spec in self.interface.inputs.items():
            suffixes = (".context", ".candidate") if spec.role == "packed" else ("",)
            inputs |= {placeholder + suffix: spec.name for suffix in suffixes}

        def arguments(stage: Stage) -> list[Tensor | int | str]:
            leaves = (inputs.get(n) or original.get(n, constants.get(n)) for n in stage.leaves)
            return [*(known.get(i, i) for i in stage.nodes), *leaves]

        stages = [(arguments(v.request), arguments(v.candidate)) for v in self.stages.variants]
        self._weights = Weights(original, constants, folded, stages)

    def _fold(self, original: dict[str, Tensor], constants: dict[str, Tensor]) -> Sequence[Tensor]:
        """The weights stage, run once per version of the weights."""
        stage = self.stages.weights
        with torch.no_grad():
            return stage.run(None, None, None, *(original[n] if n in original else constants[n] for n in stage.leaves))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HoistedModel:
        """`.to()`, `.double()`, `.cuda()`: move the original weights, retarget the graphs, fold again."""
        with torch.no_grad():
            original = {n: fn(t) for n, t in self._weights.original.items()}
            constants = {n: fn(t) for n, t in self._weights.constants.items()}
            probe = fn(torch.empty(0, dtype=self._dtype, device=self._device))
        if (probe.dtype, probe.device) != (self._dtype, self._device):
            self.certificate = None
        self._place(original, constants, probe.dtype, probe.device)
        return self

    def _place(
        self, original: dict[str, Tensor], constants: dict[str, Tensor], dtype: torch.dtype, device: torch.device,
        folded: Sequence[Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Install weights that are in `dtype` and on `device`, and graphs that name these, on the backend."""
        captured = self.interface
        moved = {captured.dtype: dtype, captured.device: device}
        self.stages: Stages = retargeted(self.blueprint.stages, moved)
        make = backend_of(self.backend)
        for variant in self.stages.variants:
            variant.request.run = make(variant.request, None)
            variant.candidate.run = make(variant.candidate, variant.state)
        self._dtype, self._device = dtype, device
        self._expected = self._expect()
        self._install(original, constants, folded)

    def __deepcopy__(self, memo: dict[int, Any]) -> HoistedModel:
        """A model with weights of its own; the blueprint, which nobody changes, is shared."""
        original = {n: t.clone() for n, t in self._weights.original.items()}
        copy = HoistedModel.of(self.blueprint, original, dict(self._weights.constants), self._dtype, self._device)
        copy.certificate = self.certificate
        return copy.to_backend(self.backend) if self.backend != "eager" else copy

    def extra_repr(self) -> str:
        cost = self.plan.cost
        return f"level={self.level}, multiply_adds={cost.multiply_adds:,} for {self.plan.workload}"


def _filled(arguments: list[Tensor | int | str], state: dict[int, Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """The arguments of one call."""
    return [state[a] if type(a) is int else inputs[a] if type(a) is str else a for a in arguments]  # type: ignore


def _explain_input(name: str, tensor: Any, what: str, dtype: torch.dtype, shape: torch.Size) -> None:
    """Raise what is wrong with an input; integers of another width are fine."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{what} input {name!r} is {type(tensor).__name__}, expected a tensor")
    if tensor.dim() != len(shape) + 1 or tensor.shape[1:] != shape:
        expected = ", ".join(["rows", *map(str, shape)])
        raise InputError(f"{what} input {name!r} has shape {list(tensor.shape)}, expected [{expected}]")
    floating = dtype.is_floating_point
    if floating or tensor.is_floating_point() or (dtype == torch.bool) != (tensor.dtype == torch.bool):
        raise InputError(f"{what} input {name!r} has dtype {tensor.dtype}, expected {dtype}")
