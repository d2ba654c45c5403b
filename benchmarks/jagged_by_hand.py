"""TorchRec's rankers as one would hoist them by hand, for one request: what `benchmarks/jagged.py` holds hoisting to.

Context work is done once, weights are cut apart before the first call, and sums over context and candidate start from
the context's part. Plain PyTorch, and nothing is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Call = Callable[[Tensor, Any, Any], Tensor]  # dense features [1, K], the request's container, the candidates' one


def by_hand(model: Any, user: list[str], item: list[str]) -> Call:
    """A function of a request and its N candidates that computes what `model` does for N rows: `[N, 1]`."""
    made = {"DLRM": dlrm, "DLRM_DCN": dlrm_dcn, "SimpleDeepFMNN": deepfm}[type(model).__name__]
    return made(model, Bags(model, user, item))


class Bags:
    """Pooled bags of both sides: `[C, D]` of a request, `[N, K, D]` of its candidates."""

    def __init__(self, model: Any, user: list[str], item: list[str]) -> None:
        tables = model.sparse_arch.embedding_bag_collection.embedding_bags
        self.user, self.item = ([tables[f"t_{key}"].weight for key in keys] for keys in (user, item))

    def of_request(self, bags: Any) -> Tensor:
        return torch.cat(self._pooled(bags, self.user))

    def of_candidates(self, bags: Any) -> Tensor:
        return torch.stack(self._pooled(bags, self.item), 1)

    def _pooled(self, bags: Any, tables: list[Tensor]) -> list[Tensor]:
        lengths = bags.lengths().view(len(tables), -1)
        ids = bags.values().split(lengths.sum(1).tolist())
        starts = (lengths.cumsum(1) - lengths).unbind()
        return [F.embedding_bag(i, t, s, mode="sum") for i, t, s in zip(ids, tables, starts, strict=True)]


def layers(arch: Any) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of the layers of a model's top, in order."""
    return [(m.weight, m.bias) for m in arch.modules() if isinstance(m, nn.Linear)]


def through(x: Tensor, rest: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Layers with a ReLU before each of them."""
    for weight, bias in rest:
        x = F.linear(x.relu_(), weight, bias)
    return x


def dlrm(model: Any, bags: Bags) -> Call:
    """Dot products of context fields once, of both sides by one product, of candidate fields by small ones."""
    (weight, bias), *rest = layers(model.over_arch)
    width, c, k = bags.user[0].shape[1], len(bags.user) + 1, len(bags.item)
    i, j = torch.triu_indices(c + k, c + k, offset=1)
    dense, pairs = weight[:, :width], weight[:, width:]
    of_context = torch.cat([dense, pairs[:, j < c]], 1).t().contiguous()
    mixed = ((i < c) & (j >= c)).nonzero().flatten()
    mixed = mixed[((j - c) * c + i)[mixed].argsort()]  # in the order in which one product makes them
    of_candidate = torch.cat([pairs[:, mixed], pairs[:, i >= c]], 1).t().contiguous()
    first, second = i[j < c], j[j < c]
    own = (i[i >= c] - c) * k + j[i >= c] - c

    def call(x: Tensor, user: Any, item: Any) -> Tensor:
        embedded = model.dense_arch(x)
        context = torch.cat([embedded, bags.of_request(user)])
        products = (context @ context.t())[first, second]
        start = torch.addmm(bias, torch.cat([embedded, products[None]], 1), of_context)
        fields = bags.of_candidates(item)
        across = (fields.view(-1, width) @ context.t()).view(-1, c * k)
        inside = torch.bmm(fields, fields.transpose(1, 2)).view(-1, k * k)[:, own]
        return through(torch.addmm(start, torch.cat([across, inside], 1), of_candidate), rest)

    return call


def dlrm_dcn(model: Any, bags: Bags) -> Call:
    """Every layer's context part is a matrix of the request times the narrow products of the layers before it."""
    (weight, bias), *rest = layers(model.over_arch)
    net = model.inter_arch.crossnet
    v, w, b = list(net.V_kernels), list(net.W_kernels), list(net.bias)
    split, rank = (len(bags.user) + 1) * bags.user[0].shape[1], len(v[0])
    w_context, w_candidate = torch.cat([x[:split] for x in w], 1), [x[split:] for x in w]

    def call(x: Tensor, user: Any, item: Any) -> Tensor:
        context = torch.cat([model.dense_arch(x).flatten(), bags.of_request(user).flatten()])
        matrix = context[:, None] * w_context
        fixed = context
        first = own = bags.of_candidates(item).flatten(1)
        narrow: list[Tensor] = []
        for n, (down, up, added) in enumerate(zip(v, w_candidate, b, strict=True)):
            made = torch.addmm(down[:, :split] @ fixed, own, down[:, split:].t())
            if narrow:
                through_context = down[:, :split] @ matrix[:, : n * rank]
                made.addmm_(torch.cat(narrow, 1), through_context.t())
            narrow.append(made)
            fixed = fixed + context * added[:split]
            own = torch.addcmul(own, first, F.linear(made, up, added[split:]))
        start = torch.addmv(bias, weight[:, :split], fixed)
        joined = torch.cat([weight[:, :split] @ matrix, weight[:, split:]], 1)
        return through(torch.addmm(start, torch.cat([*narrow, own], 1), joined.t()), rest)

    return call


def deepfm(model: Any, bags: Bags) -> Call:
    """The first layer, the sum and the sum of squares in two parts."""
    ((weight, bias),) = layers(model.inter_arch.deep_fm)
    ((top, top_bias),) = layers(model.over_arch)
    width = bags.user[0].shape[1]
    split = (len(bags.user) + 1) * width

    def call(x: Tensor, user: Any, item: Any) -> Tensor:
        embedded = model.dense_arch(x)
        context = torch.cat([embedded, bags.of_request(user).view(1, -1)], 1)
        fields = bags.of_candidates(item).flatten(1)
        start = F.linear(context, weight[:, :split], bias)
        deep = torch.addmm(start, fields, weight[:, split:].t()).relu_()
        total = fields.sum(1, keepdim=True) + context.sum()
        squares = fields.square().sum(1, keepdim=True) + context.square().sum()
        fm = (total.square() - squares) * (0.5 * top[0, -1])
        begin = F.linear(embedded, top[:, :width], top_bias)
        return torch.addmm(begin, deep, top[:, width:-1].t()).add_(fm).sigmoid_()

    return call
