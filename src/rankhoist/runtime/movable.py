"""A hoisted model is somewhere: in a dtype, on a device, its stages run by a backend. This is how it gets elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rankhoist.compiler.emit import Stages
from rankhoist.compiler.growing import Growing
from rankhoist.compiler.targets import target_of
from rankhoist.compiler.targets.backends import RECORDED, backend_of
from rankhoist.compiler.targets.cuda_graphs import wait_for
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.ids import EAGER, PLAIN, Guard
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.moved import for_target
from rankhoist.runtime.placed import placed
from rankhoist.runtime.replays import Replays
from rankhoist.runtime.scoring import Scoring
from rankhoist.runtime.standing import Recent, Standing
from rankhoist.runtime.vocabulary import Vocabulary
from rankhoist.runtime.weights import Weights

if TYPE_CHECKING:
    from typing_extensions import Self


class Movable(Scoring, nn.Module):
    """What a model holds of the place where it is, made anew wherever it goes."""

    backend = EAGER
    blueprint: Blueprint
    stages: Stages
    certificate: dict[str, Any] | None
    _inputs: Inputs
    _weights: Weights
    _guard: Guard
    _replayed: dict[str, Replays]  # by backend
    _standing: tuple[Standing, ...]  # calls that have a recording of their own, the latest first
    _recent: Recent
    _first_use = True  # record what calls come with, too, and not only what a warm-up asks for

    @classmethod
    def of(
        cls, blueprint: Blueprint, original: dict[str, Tensor], constants: dict[str, Tensor],
        dtype: torch.dtype, device: torch.device, folded: Sequence[Tensor] | None = None,
    ) -> Self:  # fmt: skip
        """From a blueprint and weights by placeholder, which are in `dtype` and on `device`.

        `folded` is what the weights stage made of them before, if that is at hand: it is not run again.
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.blueprint = blueprint
        made._place(original, constants, dtype, device, folded)
        return made

    def to_backend(self, backend: str) -> Self:
        """Run the stages with `eager` (PyTorch, operator by operator), `inductor` (torch.compile), on a CPU `onnx`
        (ONNX Runtime) or `openvino`, or on a GPU `graphs` (the first, recorded as CUDA graphs) or `inductor-graphs`
        (the second); returns itself. What `tune` chose to run them with is given up, its plans are not.

        Stages compile at the first call that uses their plan, for tens of seconds (`warm_up` pays it before), and not
        again when the numbers of candidates and requests vary, nor after `update_weights`, but for `onnx` and
        `openvino`.

        Raises:
            BackendError: no such backend; later, at a stage's first call: it does not compile, or no compiler is found.
        """
        backend_of(backend)
        if backend != EAGER:
            self._inputs.refuse(f"backend {backend!r}")
        self.backend, self._first_use = backend, True
        self._by_the_models_own()
        self._place(self._weights.original, self._weights.constants, self.dtype, self.device)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.to()`, `.double()`, `.cuda()`: move the original weights, plan for where they go, retarget the graphs, fold
        again.
        """
        with torch.no_grad():
            original = {n: _moved(fn, t) for n, t in self._weights.original.items()}
            probe = fn(torch.empty(0, dtype=self.dtype, device=self.device))
            before = self._weights.constants
            if (probe.dtype, probe.device) != (self.dtype, self.device):
                self.certificate = None
                target = target_of(probe.device, probe.dtype, self.backend in RECORDED)
                if target is None or target.name != self.blueprint.plans.target:  # what was measured there stays
                    self._by_the_models_own()
                blueprint = for_target(self.blueprint, target)
                before = before if blueprint.stages is self.blueprint.stages else blueprint.stages.constants
                self.blueprint = blueprint
            constants = {n: _moved(fn, t) for n, t in before.items()}
        self._place(original, constants, probe.dtype, probe.device)
        return self

    def _place(
        self, original: dict[str, Tensor], constants: dict[str, Tensor], dtype: torch.dtype, device: torch.device,
        folded: Sequence[Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Install weights that are in `dtype` and on `device`, and graphs that name these, on the backend."""
        self.stages = placed(self.blueprint, dtype, device, self.backend)
        self._by_backend: dict[str, Stages] = {}
        self._forget_recordings()
        self._grown: dict[tuple[int, tuple[str, ...]], Growing] = {}  # of a plan, along some lengths
        self._inputs = Inputs(self.blueprint.interface, dtype, device)
        opaque = self.blueprint.kept(original, dtype, device)
        self._weights = Weights.of(original, constants, self.stages, self.interface, folded, opaque)
        wait_for(device)  # whoever calls it may do so on another stream
        self._guard = Guard(self._inputs, self.stages, self._weights)
        if self.backend not in PLAIN:
            self.vocabulary.guard(self.stages)
        self.eval()

    def _forget_recordings(self) -> None:
        before, self._replayed = getattr(self, "_replayed", {}), {}
        self._standing, self._recent = (), Recent()
        for replays in before.values():
            replays.close()

    def _stages_by(self, backend: str) -> Stages:
        """The stages as a backend runs them."""
        if backend in ("", self.backend):
            return self.stages
        if backend not in self._by_backend:  # several threads may make them; one's are kept
            self._by_backend.setdefault(backend, self._placed(backend))
        return self._by_backend[backend]

    def _placed(self, backend: str) -> Stages:
        stages = placed(self.blueprint, self.dtype, self.device, backend)
        if backend not in PLAIN:
            self.vocabulary.guard(stages)
        return stages

    @property
    def vocabulary(self) -> Vocabulary:
        """What ids its inputs may hold."""
        return self._guard.vocabulary

    def check_ids(self, context: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        """That the ids of both sides, which are checked for their kinds, are inside of their tables.

        Raises:
            VocabularyError: one is outside; says of which input, in which row.
        """
        for side, given in (("context", context), ("candidate", candidate)):
            self._guard.check_all(side, self._inputs.stage_inputs(dict(given)))

    def _by_the_models_own(self) -> None:
        """No range has a backend of its own any more."""
        plans = self.blueprint.plans
        self.blueprint = replace(self.blueprint, plans=replace(plans, ranges=plans.ranges.on("")))

    def _on_cpu(self) -> Self:
        """As whoever loads it has it: not compiled, and an id out of range is an error that does no harm."""
        cpu, weights = torch.device("cpu"), self._weights
        if self.device == cpu and self.backend == EAGER:
            return self
        original, constants = ({n: t.to(cpu) for n, t in s.items()} for s in (weights.original, weights.constants))
        return self.of(self.blueprint, original, constants, self.dtype, cpu, [t.to(cpu) for t in weights.folded])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A model with weights of its own; the blueprint, which nobody changes, is shared."""
        original = {n: t.clone() for n, t in self._weights.original.items()}
        copy = self.of(self.blueprint, original, dict(self._weights.constants), self.dtype, self.device)
        copy.certificate = self.certificate
        if self.backend == EAGER:
            return copy
        copy.to_backend(self.backend)._first_use = self._first_use
        return copy


def _moved(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Complex numbers as pairs: `.to(torch.float64)` would leave out what is imaginary, and `.double()` not lift them.

    There are none of 16 bits to compute with, so these stay as they are where all else gets shorter.
    """
    if not tensor.is_complex():
        return fn(tensor)
    pairs = torch.view_as_real(tensor.resolve_conj())
    made = fn(pairs)
    return torch.view_as_complex(made if made.dtype in (torch.float32, torch.float64) else pairs.to(made.device))
