"""Products, sums, norms and convolutions of ONNX, and what classic learners compute (the domain `ai.onnx.ml`)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rankhoist.capture.onnx.elementwise import Operator, of_tensors
from rankhoist.capture.onnx.graph import Node
from rankhoist.capture.onnx.values import Value, numbers, tensor
from rankhoist.errors import UnsupportedModelError

# -- products


def _gemm(node: Node, x: Value, y: Value, bias: Value = None) -> Tensor:
    a, b = tensor(x), tensor(y)
    a = a.mT if node.get("transA", 0) else a
    b = b.mT if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    made = torch.matmul(a, b) if alpha == 1 else torch.matmul(a, b) * alpha
    if bias is None:
        return made
    return made + (tensor(bias) if beta == 1 else tensor(bias) * beta)


def _einsum(node: Node, *values: Value) -> Tensor:
    return torch.einsum(node.get("equation"), *map(tensor, values))


# -- along axes


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    """Axes by an input or, in older files, by an attribute; without any, all or none of them."""

    def run(node: Node, value: Value, axes: Value = None) -> Tensor:
        x = tensor(value)
        given = node.get("axes") if axes is None else numbers(axes, f"axes of {node}")
        if not given and node.get("noop_with_empty_axes", 0):
            return x
        places = [int(a) % x.dim() for a in given] if given else list(range(x.dim()))
        return function(x, places, bool(node.get("keepdims", 1)))

    return run


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


def _arg(function: Callable[..., Tensor]) -> Operator:
    def run(node: Node, value: Value) -> Tensor:
        if node.get("select_last_index", 0):
            raise UnsupportedModelError(f"{node} takes the last of equal values, which is not read")
        return function(tensor(value), node.get("axis", 0), bool(node.get("keepdims", 1)))

    return run


def _cumulated(node: Node, value: Value, axis: Value) -> Tensor:
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise UnsupportedModelError(f"{node} sums exclusively or in reverse, which is not read")
    return torch.cumsum(tensor(value), int(numbers(axis, f"axis of {node}")[0]))


def _softmax(function: Callable[..., Tensor]) -> Operator:
    return lambda node, value: function(tensor(value), node.get("axis", -1))


def _layer_norm(node: Node, value: Value, weight: Value, bias: Value = None) -> Tensor:
    x, axis = tensor(value), node.get("axis", -1)
    shape = list(x.shape[axis:])
    own = None if bias is None else tensor(bias).expand(shape)
    return F.layer_norm(x, shape, tensor(weight).expand(shape), own, node.get("epsilon", 1e-5))


def _rms_norm(node: Node, value: Value, weight: Value) -> Tensor:
    x, axis = tensor(value), node.get("axis", -1)
    shape = list(x.shape[axis:])
    return F.rms_norm(x, shape, tensor(weight).expand(shape), node.get("epsilon", 1e-5))


def _batch_norm(node: Node, value: Value, weight: Value, bias: Value, mean: Value, variance: Value) -> Tensor:
    if node.get("training_mode", 0):
        raise UnsupportedModelError(f"{node} takes the statistics of its rows: export the model in eval mode")
    x, w, b, m, v = map(tensor, (value, weight, bias, mean, variance))
    return F.batch_norm(x, m, v, w, b, False, 0.0, node.get("epsilon", 1e-5))


def _attention(node: Node, query: Value, key: Value, value: Value, mask: Value = None, *past: Value) -> Tensor:
    """`[rows, heads, T, width]`, or `[rows, T, heads * width]` where the file says how many heads there are."""
    if any(p is not None for p in past) or node.get("softcap", 0.0) or len([o for o in node.outputs if o]) > 1:
        raise UnsupportedModelError(f"{node} has a past, caps its scores or gives them away, which is not read")
    heads, of_keys = node.get("q_num_heads"), node.get("kv_num_heads")
    q, k, v = (_by_head(tensor(x), h) for x, h in ((query, heads), (key, of_keys), (value, of_keys)))
    if q.shape[1] != k.shape[1]:
        raise UnsupportedModelError(f"{node} shares keys among heads, which is not read")
    added = None if mask is None else tensor(mask)
    causal = bool(node.get("is_causal", 0))
    made = F.scaled_dot_product_attention(q, k, v, added, 0.0, causal, scale=node.get("scale"))
    return made if heads is None else made.transpose(1, 2).flatten(2)


def _by_head(x: Tensor, heads: int | None) -> Tensor:
    return x if heads is None else x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


# -- windows


def _sides(node: Node, dims: int) -> list[int]:
    """What is padded at the start of each of `dims` axes, then at their ends."""
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedModelError(f"{node} pads by itself ({node.get('auto_pad')}), which is not read")
    return node.get("pads", [0] * 2 * dims)  # type: ignore[no-any-return]


def _with_sides(x: Tensor, sides: list[int], fill: float) -> Tensor:
    dims = len(sides) // 2
    pairs = [side for axis in reversed(range(dims)) for side in (sides[axis], sides[axis + dims])]
    return F.pad(x, pairs, value=fill) if any(pairs) else x


def _convolved(node: Node, value: Value, weight: Value, bias: Value = None) -> Tensor:
    x, w = tensor(value), tensor(weight)
    dims = x.dim() - 2
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    stride, dilation = node.get("strides", [1] * dims), node.get("dilations", [1] * dims)
    own = None if bias is None else tensor(bias)
    x = _with_sides(x, _sides(node, dims), 0.0)
    return function(x, w, own, stride, 0, dilation, node.get("group", 1))


def _pooled(largest: bool) -> Operator:
    def run(node: Node, value: Value) -> Tensor:
        x, dims = tensor(value), len(node.get("kernel_shape"))
        sides, stride = _sides(node, dims), node.get("strides", [1] * dims)
        if node.get("ceil_mode", 0) or (not largest and any(sides)):
            raise UnsupportedModelError(f"{node} rounds up, or averages over padding, which is not read")
        if not largest:
            return {1: F.avg_pool1d, 2: F.avg_pool2d}[dims](x, node.get("kernel_shape"), stride)
        x = _with_sides(x, sides, float("-inf"))
        dilation = node.get("dilations", [1] * dims)
        made: Tensor = {1: F.max_pool1d, 2: F.max_pool2d}[dims](x, node.get("kernel_shape"), stride, 0, dilation)
        return made

    return run


def _over_all(function: Callable[..., Tensor]) -> Operator:
    return lambda node, value: function(tensor(value), tuple(range(2, tensor(value).dim())), True)


# -- classic learners


def _post(node: Node, scores: Tensor) -> Tensor:
    kind = node.get("post_transform", "NONE")
    if kind not in ("NONE", "LOGISTIC", "SOFTMAX"):
        raise UnsupportedModelError(f"{node} transforms by {kind}, which is not read")
    if kind == "SOFTMAX":
        return torch.softmax(scores, -1)
    return torch.sigmoid(scores) if kind == "LOGISTIC" else scores


def _scaled(node: Node, value: Value) -> Tensor:
    x = tensor(value).to(torch.float32)
    return (x - torch.tensor(node.get("offset", [0.0]))) * torch.tensor(node.get("scale", [1.0]))


def _linear(node: Node, value: Value, count: int) -> Tensor:
    x, weight = tensor(value).to(torch.float32), torch.tensor(node.get("coefficients")).reshape(count, -1)
    made = torch.matmul(x, weight.T)
    return made + torch.tensor(node.get("intercepts")) if node.get("intercepts") else made


def _regressor(node: Node, value: Value) -> Tensor:
    return _post(node, _linear(node, value, node.get("targets", 1)))


def _classifier(node: Node, value: Value) -> tuple[Tensor, Tensor]:
    """Labels `[rows]` and scores `[rows, classes]`."""
    labels = node.get("classlabels_ints")
    if not labels or len(labels) < 2:
        raise UnsupportedModelError(f"{node} has labels that are text, which are not read")
    if len(node.get("intercepts", labels)) != len(labels):
        raise UnsupportedModelError(f"{node} has one score for two classes, which is not read")
    scores = _linear(node, value, len(labels))
    return torch.tensor(labels)[scores.argmax(-1)], _post(node, scores)


def _normalised(node: Node, value: Value) -> Tensor:
    x, kind = tensor(value), node.get("norm", "MAX")
    order = {"MAX": math.inf, "L1": 1, "L2": 2}[kind]
    length: Tensor = torch.linalg.vector_norm(x, order, -1, True)
    return x / length


def _columns(node: Node, value: Value, index: Value) -> Tensor:
    x = tensor(value)
    return (x[None] if x.dim() == 1 else x)[..., tensor(index).reshape(-1)]


def _categories(node: Node, value: Value) -> Tensor:
    known = node.get("cats_int64s")
    if not known:
        raise UnsupportedModelError(f"{node} has categories that are text, which are not read")
    return (tensor(value)[..., None] == torch.tensor(known)).to(torch.float32)


OPERATORS: dict[str, Operator] = {
    "MatMul": of_tensors(torch.matmul), "Gemm": _gemm, "Einsum": _einsum,
    "ReduceSum": _reduced(torch.sum), "ReduceMean": _reduced(torch.mean), "ReduceMax": _reduced(torch.amax),
    "ReduceMin": _reduced(torch.amin), "ReduceProd": _reduced(_product),
    "ReduceL1": _reduced(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ReduceLogSum": _reduced(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduced(torch.logsumexp),
    "ArgMax": _arg(torch.argmax), "ArgMin": _arg(torch.argmin), "CumSum": _cumulated,
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
    "Attention": _attention, "LayerNormalization": _layer_norm, "RMSNormalization": _rms_norm,
    "BatchNormalization": _batch_norm,
    "Conv": _convolved, "MaxPool": _pooled(True), "AveragePool": _pooled(False),
    "GlobalAveragePool": _over_all(torch.mean), "GlobalMaxPool": _over_all(torch.amax),
    "ai.onnx.ml.Scaler": _scaled, "ai.onnx.ml.LinearRegressor": _regressor, "ai.onnx.ml.LinearClassifier": _classifier,
    "ai.onnx.ml.Normalizer": _normalised, "ai.onnx.ml.ArrayFeatureExtractor": _columns,
    "ai.onnx.ml.OneHotEncoder": _categories,
    "ai.onnx.ml.FeatureVectorizer": lambda node, *x: torch.cat([tensor(v).to(torch.float32) for v in x], -1),
}  # fmt: skip
