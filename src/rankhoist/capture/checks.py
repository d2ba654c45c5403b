"""What a model must not do: in eval mode, and, where it is captured to be trained, in training mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from rankhoist.capture.composites import lies_in_order
from rankhoist.capture.operators import draws, module_path, named_arguments, operator_name
from rankhoist.errors import TrainingModeError, UnsupportedModelError

RANDOM = {"rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "randperm", "bernoulli", "multinomial",
          "normal", "uniform", "exponential", "poisson", "geometric", "log_normal", "cauchy", "random"}  # fmt: skip
DROPOUT = {"dropout", "native_dropout", "scaled_dot_product_attention", "gru", "lstm", "rnn_tanh", "rnn_relu"}

WRITING = {getattr(torch.ops.higher_order, f"auto_functionalized{version}") for version in ("", "_v2")}


def check_eval_mode(model: nn.Module) -> None:
    """A wrapper around modules in eval mode may have forgotten its own flag; what it computes is checked in the
    graph.

    Raises:
        TrainingModeError: a module is in training mode.
    """
    training = in_training_mode(model)
    if training:
        shown = ", ".join(training[:5]) + (f" and {len(training) - 5} more" if len(training) > 5 else "")
        raise TrainingModeError(f"call model.eval() first: in training mode are {shown}")


def check_weights(model: nn.Module, example: Any) -> None:
    """That every weight has values where the example has some.

    Raises:
        UnsupportedModelError: one is a lazy module's that has not been called yet, or is on the meta device.
    """
    valued = not any(isinstance(x, Tensor) and x.is_meta for x in pytree.tree_leaves(example))
    for kind, own in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in own:
            if is_lazy(tensor):
                raise UnsupportedModelError(
                    f"{kind} {name!r} has no shape yet: its module is lazy. Call the model once on the example, or "
                    "load its state dict"
                )
            if tensor.is_meta and valued:
                raise UnsupportedModelError(
                    f"{kind} {name!r} is on the meta device and has no values: load the state dict with "
                    "load_state_dict(..., assign=True)"
                )


def in_training_mode(model: nn.Module) -> list[str]:
    """Paths of the modules in training mode that compute by themselves."""
    return [path or "(the model itself)" for path, module in _computing(model, "") if module.training]


def _computing(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules without others inside, by path; none of an exported program's module, which has no mode: it refuses
    `train` and `eval`, and what is inside of it holds weights and no more.
    """
    if isinstance(module, fx.GraphModule) and "train" in vars(module):
        return
    children = dict(module.named_children())
    if not children:
        yield path, module
    for name, child in children.items():
        yield from _computing(child, f"{path}.{name}".lstrip("."))


def check_exported(exported: torch.export.ExportedProgram) -> None:
    """That gradients flow as the model's author wrote it: `no_grad` inside of a model is lost where it is inlined.

    Raises:
        UnsupportedModelError: a module switches gradients off.
    """
    for node in exported.graph.nodes:
        if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            raise UnsupportedModelError(
                f"gradients are switched on or off in {_where(node)} (torch.no_grad, torch.enable_grad), which the "
                "captured graph does not keep. Use tensor.detach(), which it keeps."
            )


def check_outputs(signature: Any, training: bool) -> None:
    """That nothing is written but buffers in training mode, as batch norms do.

    Raises:
        UnsupportedModelError: says what is.
    """
    for spec in signature.output_specs:
        if spec.kind is OutputKind.PARAMETER_MUTATION:
            raise UnsupportedModelError(
                f"the model writes to its parameter {spec.target!r} in forward, as an embedding with max_norm or "
                "`weight.data += ...` does. Hoist the part of the model that only reads; compute with what would be "
                "written, F.linear(x, self.weight + self.a @ self.b), or write it once, before the model is hoisted: a "
                "LoRA's merged weight is that of every call."
            )
        if spec.kind is OutputKind.BUFFER_MUTATION and not training:
            raise UnsupportedModelError(
                f"the model writes to its buffer {spec.target!r} in forward; a hoisted model keeps no state between "
                "calls. Hoist the part of the model that only reads."
            )


def check_results(outputs: Sequence[Any], rows: sympy.Symbol) -> None:
    """That there are results, and that numbers among them follow from the number of rows.

    Raises:
        UnsupportedModelError: there is no tensor, or a number is read out of data, is the length of an axis that
            varies, or no whole number.
    """
    if not any(isinstance(node, fx.Node) and isinstance(node.meta["val"], Tensor) for node in outputs):
        raise UnsupportedModelError(
            "the model returns no tensor, so there is nothing to score: does forward return it?"
        )
    for node in outputs:
        value = node.meta["val"] if isinstance(node, fx.Node) else None
        if not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            continue
        if not (isinstance(value, torch.SymInt) and value.node.expr.free_symbols <= {rows}):
            raise UnsupportedModelError(
                f"the model returns a number that is no tensor and no number of rows ({_called(node)}). Return a "
                "tensor in its place, or leave it out"
            )


def check_states(graph: fx.Graph) -> None:
    """That what torch says of an LSTM's last states is so: versions before 2.13 export them with an axis too many.

    Raises:
        UnsupportedModelError: it is not, and they are read.
    """
    for node in graph.nodes:
        if node.target is not torch.ops.aten.lstm.input:
            continue
        axes = node.args[1][0].meta["val"].dim()
        if node.meta["val"][1].dim() != axes and any(user.args[1] > 0 for user in node.users if user.users):
            raise UnsupportedModelError(
                f"{_called(node)}: PyTorch {torch.__version__} exports the last states of an LSTM with an axis too "
                "many, and what follows by it. Use a newer PyTorch, or the layer's output in place of its states"
            )


def check_operators(graph: fx.Graph, training: bool) -> None:
    """That every operator can be computed once per request, or over all rows.

    Raises:
        TrainingModeError: one is in training mode where the model is to score.
        UnsupportedModelError: one draws random numbers, or cannot be analysed; says in which module.
    """
    for node in graph.nodes:
        if node.target in WRITING:
            raise UnsupportedModelError(
                f"{node.args[0]} in {_where(node)} writes to what it is given, and nothing else is known of it: let it "
                "return what it makes, torch.library.custom_op(..., mutates_args=())"
            )
        if node.op == "get_attr" or isinstance(node.target, torch._ops.HigherOrderOperator):
            raise UnsupportedModelError(f"{_called(node)}: control flow operators cannot be hoisted")
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = operator_name(node).rstrip("_")
        if not training and "batch_norm" in name and named_arguments(node).get("training") is True:
            raise TrainingModeError(
                f"{_called(node)} takes the statistics of the rows of a call, so that a score depends on the other "
                "candidates: call model.eval() first, and give the norm running statistics (track_running_stats=True)"
            )
        if not training and (name in DROPOUT or name.endswith("dropout")) and draws(node):
            raise TrainingModeError(
                f"{_called(node)} runs in training mode: call model.eval() first, and where it is a function that does "
                "not ask the module (F.dropout(x, p) drops by default), give it training=self.training, or "
                "to attention dropout_p=p if self.training else 0.0"
            )
        if name in RANDOM or (draws(node) and name not in DROPOUT):
            raise UnsupportedModelError(
                f"{_called(node)} draws random numbers in forward, so equal scores have no meaning. "
                "Hoist the submodules before and after it."
            )
        if name.startswith("as_strided") and not lies_in_order(node.args[0].meta["val"]):
            raise UnsupportedModelError(
                f"{_called(node)} reads memory as it lies, of a tensor that is a view of another or is transposed: "
                "in a hoisted model it lies otherwise. Call contiguous() before it, or index by positions."
            )
        if training and "embedding" in name and named_arguments(node).get("scale_grad_by_freq"):
            raise UnsupportedModelError(
                f"{_called(node)} scales gradients by how often a row has an id, which grouped batches do not show: "
                "set scale_grad_by_freq=False."
            )


def _called(node: fx.Node) -> str:
    return f"{node.target} in {_where(node)}"


def _where(node: fx.Node) -> str:
    return module_path(node) or "the model itself"


def mutated(signature: Any) -> Iterator[tuple[str, str]]:
    """Of every buffer that is written: its name in the model, and the node that makes its new value."""
    for spec in signature.output_specs:
        if spec.kind is OutputKind.BUFFER_MUTATION:
            yield spec.target, spec.arg.name
