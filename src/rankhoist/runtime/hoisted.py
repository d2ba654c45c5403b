"""The hoisted model: called like the original, with one row of context per request."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist.arguments import mapping_of, path_of, whole_numbers
from rankhoist.capture import Program
from rankhoist.compiler.plan import Plan, Plans, PlanSummary, single
from rankhoist.compiler.targets.cuda_graphs import wait_for
from rankhoist.errors import InputError, WeightsError
from rankhoist.report import Report
from rankhoist.report.certificate import Certificate
from rankhoist.report.notebook import of_model
from rankhoist.runtime import artifact, export
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.growing import Appending
from rankhoist.runtime.made_up import made_up_example
from rankhoist.runtime.offsets import even
from rankhoist.runtime.opaque import check_exported
from rankhoist.runtime.tune import CANDIDATES, SECONDS, tuned
from rankhoist.runtime.weights import Weights, renewed


class HoistedModel(Appending, nn.Module):
    """An equal model that computes context work once per request.

    Call it like the original, context tensors with one row per request: `[R, ...]`, candidate tensors with one row per
    candidate: `[N, ...]`. Results have N rows. With R > 1 (or 0), `request_offsets` gives the R + 1 boundaries of the
    requests' candidate blocks, which may be empty. A packed input is given as `rankhoist.Split(context, candidate)`.

    It computes scores, not gradients. Weights are shared with the original model, not copied (but for constant masks
    and indices, which must not change, and on a CPU up to 64 MiB of matrices that are laid out for its products): after
    changing them in place, call `update_weights`.
    Calls from several threads at once are safe, also while `update_weights` runs.

    `certificate` is the one in the file that it was loaded from, as plain data, until its weights change.
    """

    certificate: dict[str, Any] | None = None
    _usable: tuple[Plans[PlanSummary], torch.device, Plans[PlanSummary]] | None = None  # its plans, as they run here

    def __init__(self, program: Program, plans: Plans[Plan] | Plan, with_store: Plans[Plan] | None = None) -> None:
        blueprint = Blueprint.of(program, plans if isinstance(plans, Plans) else single(plans), with_store)
        # What the plans were made from is copied, so that a change of it in place is noticed.
        original = {n: w.tensor.clone() if n in blueprint.pinned else w.tensor for n, w in program.weights.items()}
        super().__init__()
        self.blueprint = blueprint
        self._place(original, blueprint.stages.constants, program.dtype, program.device)

    @property
    def program(self) -> Program | None:
        """The captured program; None where it was loaded from a file."""
        return self.blueprint.program

    @property
    def plans(self) -> Plans[PlanSummary]:
        """Its plans, and how many candidates and requests each is used for.

        What `tune` gave to a backend that is not here is scored as was predicted; a file that is saved keeps it.
        """
        own, device = self.blueprint.plans, self.device
        known = self._usable
        if known is None or known[0] is not own or known[1] != device:
            known = self._usable = own, device, own.without(own.absent(device))
        return known[2]

    @property
    def plan(self) -> PlanSummary:
        """The plan for the workload that it was hoisted for."""
        return self.plans.main

    @property
    def level(self) -> str:
        """The level that was asked for; where nothing pays, its plan is that of a lower one."""
        return self.plan.asked.name.lower()

    @property
    def example(self) -> dict[str, Any]:
        """Example inputs by name, whole rows: those given to `hoist`; those in the file that it was loaded from."""
        return dict(self.interface.example)

    def report(self) -> Report:
        """Per captured operator: its rate, its work before and after, and why what stayed per candidate stayed."""
        return self.blueprint.report()

    def extra_repr(self) -> str:
        cost = self.plan.cost
        return f"level={self.level}, multiply_adds={cost.multiply_adds:,} for {self.plan.workload}"

    def _repr_html_(self) -> str:
        """In a notebook: what is saved, and which plan scores how many candidates."""
        return of_model(self.report(), str(self.plans))

    @property
    def weights(self) -> Weights:
        """The version in use."""
        return self._weights

    def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """New weights for the same model: re-runs the weights stage; calls under way keep the version they started
        with. A wrapper's state dict (`module.`, `_orig_mod.` before its names) is as good as the model's.

        Raises:
            WeightsError: names or shapes differ, or a buffer that the plan was made from (an index, a mask) changed.
                The model is left as it was.
        """
        state_dict = mapping_of(state_dict, "state_dict", "model.state_dict()")
        original = renewed(self._weights.original, state_dict, self.interface.state, self.blueprint.pinned)
        opaque = self.blueprint.kept(original, self.dtype, self.device)
        weights = Weights.of(original, self._weights.constants, self.stages, self.interface, opaque=opaque)
        wait_for(self.device)  # calls may be on other streams
        before, self._replayed = self._replayed, {name: own.anew(weights) for name, own in self._replayed.items()}
        self._weights = self._guard.weights = weights
        self._standing = ()  # they are of the weights before
        for replays in before.values():
            replays.close()
        self.certificate = None

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        """The original model's weights under their original names; of one from a file, without buffers that no call
        reads.
        """
        destination.update({prefix + name: self._weights.original[p] for name, p in self.interface.state.items()})

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """As `update_weights`, of the weights that are there; torch tells what is missing, as of any module."""
        own, names = {n[len(prefix) :]: t for n, t in state_dict.items() if n.startswith(prefix)}, self.interface.state
        missing_keys.extend(prefix + n for n in names if n not in own)
        unexpected_keys.extend(prefix + n for n in own if n not in names)
        try:
            self.update_weights({n: own.get(n, self._weights.original[p]) for n, p in names.items()})
        except WeightsError as error:
            error_msgs.append(str(error))

    def warm_up(self, candidates: Sequence[int] = (), requests: Sequence[int] = (1,)) -> HoistedModel:
        """Compile what calls with these numbers of requests need, and of candidates in all: any, unless some are given.

        On a GPU such calls are recorded as CUDA graphs, and by backend `graphs` anywhere; from then on calls of up to
        as many requests and candidates are replayed. It scores made-up rows, the example's where it is known; returns
        itself.
        """
        candidates, requests = whole_numbers(candidates, "candidates"), whole_numbers(requests, "requests")
        if min(candidates, default=0) < 0 or min(requests, default=0) < 0:
            raise InputError(f"calls have 0 and more of each, got {candidates} candidates, {requests} requests")
        self._record_calls()
        for r in requests:
            for n in candidates or self.plans.one_per_plan(r):
                self._warm_up_for(self.plans.at(n, r), r, n)
                state = self.prepare(self.made_up("context", r), candidates=n)
                self.score(state, self.made_up("candidate", n), request_offsets=even(n, r))
        return self

    def tune(
        self, candidates: Sequence[int] = CANDIDATES, requests: Sequence[int] = (1,), seconds: float = SECONDS,
        progress: Callable[[str], Any] = lambda told: None, backends: Collection[str] | None = None,
    ) -> HoistedModel:  # fmt: skip
        """Time the plans here, the original among them, by the backends that are installed, and use what is fastest.

        Each must score made-up rows, the example's where it is known, as the original does before it is timed; then
        they take turns. What won is used for calls of about the sizes measured, by `save` kept in the file, and shown
        by `report`; elsewhere the prediction stands.

        Args:
            candidates, requests: of the calls to measure, every number of candidates (in all) with each of requests.
            seconds: for all of it. What is compiling then is finished; what is not begun is left out, and said so.
            progress: told of each step, in words.
            backends: to try beside PyTorch's own operators, of those that are installed; all of them by default.

        Raises:
            InputError: a number is below 1.
            BackendError: there is no such backend, or not here.
        """
        ranges, tuning = tuned(self, candidates, requests, seconds, progress, backends)
        report, plans = self.blueprint.report, self.plans
        self.blueprint = replace(
            self.blueprint,
            plans=replace(plans, ranges=ranges, predicted=plans.predicted or plans.ranges),
            report=lambda: replace(report(), tuning=tuning),
        )
        self._forget_recordings()
        for point in tuning.points:
            self._warm_up_for(ranges.at(point.candidates, point.requests), point.requests, point.candidates)
        return self

    def save(
        self, path: str | os.PathLike[str], certificate: Certificate | None = None, *, example: bool = False
    ) -> None:
        """Write it to one file, to be loaded by `rankhoist.load`, with a certificate if there is one: this one, or else
        that of the file it comes from.

        The file holds the weights of now, the graphs, plans and report as data, and rows that the model takes; nothing
        in it is ever run as code. The rows are made up, and none of the example's is in the file.

        Args:
            example: write the example's own rows instead. Whoever has the file has them.

        Raises:
            ArtifactError: it holds something that a file cannot, or the file cannot be written.
        """
        proof = self.certificate if certificate is None else certificate.to_dict()
        blueprint = self.blueprint
        if not (example or self.interface.made_up):
            model = self._on_cpu()
            rows = made_up_example(model, model.vocabulary.below)
            blueprint = replace(blueprint, interface=replace(self.interface, example=rows, made_up=True))
        artifact.save(path, blueprint, self._weights, self.dtype, proof)

    def __copy__(self) -> HoistedModel:
        """The same weights and graphs, as of any module."""
        model = object.__new__(type(self))
        model.__dict__.update(self.__dict__)
        return model

    def export_onnx(self, folder: str | os.PathLike[str], several: bool = False) -> None:
        """Write both stages as ONNX models; `rankhoist.runtime.load_onnx` runs them.

        Args:
            folder: for `request.onnx`, `candidate.onnx` and `manifest.json`, which names their inputs and outputs.
                Weights are inside, or beside a model (`candidate.onnx.data`) where they exceed 1 GiB.
            several: also `several.onnx`, the candidate stage of several requests per call.

        Raises:
            BackendError: the extra `onnx` is not installed, or an operator has no ONNX counterpart.
        """
        export.to_onnx(path_of(folder, "folder"), self._source("ONNX"), several)

    def package(self, folder: str | os.PathLike[str], several: bool = False) -> None:
        """Compile both stages ahead of time with AOTInductor; `rankhoist.runtime.load_package` runs them.

        A package is native code of this machine's kind, which runs when loaded: load only what you trust. A call from
        Python holds the interpreter lock from beginning to end, so threads do not score side by side.
        """
        export.to_package(path_of(folder, "folder"), self._source("AOTInductor"), several)

    def _source(self, how: str) -> export.Source:
        """What is exported: the main plan, or where that has a condition the one for calls for which it does not hold.

        Raises:
            BackendError: modules that are kept as they are cannot be exported.
        """
        check_exported(self.blueprint.modules, how)
        plan = self.plans.for_all(0) if self.stages.variants[0].conditional else 0
        return export.Source(self._inputs.exported, self.stages, self._weights, self.vocabulary, plan)
