"""What one would write by hand with a store of items: the floor beside the calls of `catalogue.py`.

Every function takes a model, the request `[1, ...]` and all items `[M, ...]`, makes a table, and returns a call that
scores rows of it: in products as few and as large as they can be, and nothing between them that PyTorch has a faster
spelling for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Call = Callable[[Tensor], Any]


def mlp(model: Any, context: Tensor, items: Tensor) -> Call:
    """A row is the item's part of the first layer."""
    first, *others = (layer for layer in model.top if isinstance(layer, nn.Linear))
    own = context.shape[1]
    table = F.linear(items, first.weight[:, own:])

    def call(rows: Tensor) -> Tensor:
        start = F.linear(context, first.weight[:, :own], first.bias)
        return _layers(table.index_select(0, rows).add_(start).relu_(), others)

    return call


def norm_linear(model: Any, context: Tensor, items: Tensor) -> Call:
    """A row is the item's part of the layer less its share of the mean, and what the variance needs of it."""
    norm, out = model.norm, model.out
    own, count = context.shape[1], items.shape[1]
    width = own + count
    weight, apart = out.weight * norm.weight, math.sqrt(own * count) / width
    shift, bias = weight.sum(1) / width, F.linear(norm.bias[None], out.weight, out.bias)
    squares, mean = torch.var_mean(items, 1, unbiased=False, keepdim=True)
    part = F.linear(items, weight[:, own:]) - items.sum(1, keepdim=True) * shift
    table = torch.cat([part, mean * apart, squares * count / width], 1)
    mine = weight[:, :own].contiguous()

    def call(rows: Tensor) -> Tensor:
        square, middle = torch.var_mean(context, 1, unbiased=False)
        start = F.linear(context, mine) - context.sum(1) * shift
        read = table.index_select(0, rows)
        x, far, near = read[:, :-2], read[:, -2:-1], read[:, -1:]
        scale = (far - middle * apart).square_().add_(near).add_(square * own / width + norm.eps).rsqrt_()
        return torch.addcmul(bias, x.add_(start), scale, out=x)

    return call


def dot_pairs(model: Any, context: Tensor, items: Tensor) -> Call:
    """A row is an item's fields and the products among them; those with the request's are one product."""
    first, *others = (layer for layer in model.top if isinstance(layer, nn.Linear))
    own, width = context.shape[1], context.shape[2]
    left, right = model.pairs
    mixed, inside, ours = ((left < own) & (right >= own)).nonzero()[:, 0], left >= own, right < own
    table = torch.cat([items.flatten(1), torch.bmm(items, items.mT)[:, left[inside] - own, right[inside] - own]], 1)
    mixed = mixed[((right[mixed] - own) * own + left[mixed]).argsort()]  # as rows times the request's fields come out
    weight = torch.cat([first.weight[:, mixed], first.weight[:, inside]], 1)
    mine, at = first.weight[:, ours].contiguous(), (left[ours], right[ours])

    def call(rows: Tensor) -> Tensor:
        fields = context[0]
        start = F.linear((fields @ fields.T)[at], mine, first.bias)
        read = table.index_select(0, rows)
        fields_of, inner = read[:, : items[0].numel()], read[:, items[0].numel() :]
        pairs = torch.mm(fields_of.reshape(-1, width), fields.T).view(len(rows), -1)
        return _layers(F.linear(torch.cat([pairs, inner], 1), weight, start).relu_(), others)

    return call


def mmoe(model: Any, context: Tensor, items: Tensor) -> Call:
    """A row is the item's part of all experts and gates; the experts' last layers are one batched product."""
    experts, own = model.shared, context.shape[1]
    ends = [*(expert[0] for expert in experts), *model.gates]
    weight, bias = torch.cat([x.weight for x in ends]), torch.cat([x.bias for x in ends])
    mine, table = weight[:, :own].contiguous(), F.linear(items, weight[:, own:])
    count, hidden = len(experts), experts[0][0].out_features
    last, shift = torch.stack([e[2].weight.T for e in experts]), torch.stack([e[2].bias for e in experts])[:, None]

    def call(rows: Tensor) -> list[Tensor]:
        read = table.index_select(0, rows).add_(F.linear(context, mine, bias))
        x = read[:, : count * hidden].relu_().view(len(rows), count, hidden).transpose(0, 1)
        made = torch.baddbmm(shift, x, last).relu_()
        gates = read[:, count * hidden :].view(len(rows), len(model.gates), count)
        shares = torch.softmax(gates.permute(2, 1, 0).contiguous(), 0)
        scores = []
        for task, tower in enumerate(model.towers):
            mixed = made[0] * shares[0, task, :, None]
            for e in range(1, count):
                mixed.addcmul_(made[e], shares[e, task, :, None])
            scores.append(_layers(mixed, [tower[0], tower[2]]).sigmoid_())
        return scores

    return call


def tower(model: Any, context: Tensor, items: Tensor) -> Call:
    """A row is the tower's result k and its part of the first gate; a request makes matrices of the layers behind it.

    Of every layer, `x_c` is affine in k and in the candidate's part of the layer before, `x_k` is not.
    """
    own, c = context.shape[1], context
    layers, top = [layer.weight for layer in model.cross.layers], model.top
    biases = [layer.bias for layer in model.cross.layers]
    ours, kk = [w[:, :own].contiguous() for w in layers], [w[own:, own:].contiguous() for w in layers]
    down, up = [w[:own, own:].T.contiguous() for w in layers], [w[own:, :own].contiguous() for w in layers]
    middle, last = layers[1][:own, :own].contiguous(), layers[2][:own, :own].contiguous()
    top_c, top_k = top.weight[:, :own], top.weight[:, own:].T
    k = model.item(items)
    width, table = k.shape[1], torch.cat([k, F.linear(k, kk[0])], 1)

    def call(rows: Tensor) -> Tensor:
        x, starts = c, []
        for weight, bias in zip(ours, biases, strict=True):
            gate = F.linear(x, weight, bias)
            x = torch.addcmul(x, gate[:, :own], c)
            starts.append(gate[:, own:])
        first, second = down[0] * c, down[1] * c
        both = F.linear(first, middle).mul_(c).add_(first)  # of k in the second layer's x_c; `second` is of x_k
        end = torch.addmm(top_c.T, last.T, (top_c * c).T)  # what x_c counts before the last layer
        read = table.index_select(0, rows)
        k, gate = read[:, :width], read[:, width:]
        y1 = torch.addcmul(k, k, gate.add_(starts[0]))
        y2 = torch.addcmul(y1, k, torch.addmm(starts[1], k, F.linear(first, up[1])).addmm_(y1, kk[1].T))
        z = torch.addmm(starts[2], k, F.linear(both, up[2])).addmm_(y1, F.linear(second, up[2])).addmm_(y2, kk[2].T)
        scores = torch.addmm(F.linear(x, top_c, top.bias), k, both @ end).addmm_(y1, second @ end)
        return scores.addmm_(y2, (down[2] * c) @ top_c.T).addmm_(torch.addcmul(y2, k, z), top_k).squeeze(1)

    return call


def _layers(x: Tensor, layers: list[nn.Linear]) -> Tensor:
    """Linear layers with a ReLU between them."""
    for layer in layers[:-1]:
        x = F.linear(x, layer.weight, layer.bias).relu_()
    return F.linear(x, layers[-1].weight, layers[-1].bias)


BY_HAND: dict[str, Callable[[Any, Tensor, Tensor], Call]] = {
    "mlp": mlp, "norm_linear": norm_linear, "dot_pairs_27_4": dot_pairs, "mmoe": mmoe, "tower": tower,
}  # fmt: skip
