"""Models of one line over as many operators: whatever `torch.export` takes is hoisted and equal, or refused by us.

Rows may meet, be sorted, scattered and viewed apart: what has no law runs as it is over all rows. No pass may break.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import LEVELS, Function, assert_equal, at_every_level, repeated
from torch import Tensor

from rankhoist.capture import capture
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import RankhoistError
from rankhoist.hoist import hoist_program

N, D = 7, 4
OFFSETS = [0, 3, 3, N]
G = torch.Generator().manual_seed(5)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


CONTEXT, CANDIDATE, W = randn(3, D), randn(N, D), randn(D, D)


def ids(x: Tensor) -> Tensor:
    """Whole numbers from 0 to 3."""
    return (x * 2).long().remainder(4)


def square(c: Tensor, k: Tensor) -> Tensor:
    """Matrices that have an inverse."""
    return torch.einsum("bi,bj->bij", c, k) + 9 * torch.eye(D, dtype=c.dtype)


def asserted(c: Tensor, k: Tensor) -> Tensor:
    torch._assert_async((c.abs() < 1e3).all(), "context out of range")
    torch._assert_async((k.abs() < 1e3).all())
    return c * k


def number_asserted(c: Tensor, k: Tensor) -> Tensor:
    torch._check(c.abs().amax().long().item() < 1000)
    return c * k


def sizes_asserted(c: Tensor, k: Tensor) -> Tensor:
    torch._check(c.shape[0] == k.shape[0])
    return c * k


def printed(c: Tensor, k: Tensor) -> Tensor:
    torch.ops.aten._print("")
    return c * k


def written(c: Tensor, k: Tensor, *places: Any) -> Tensor:
    y = c.clone()
    y[places] = k[places]
    return y


def stacked(c: Tensor, k: Tensor) -> Tensor:
    return torch.cat([c, k])


# (context, candidate) -> scores, one row of `CASES` per operator or way to call it.
MEET = {  # rows that meet
    "sum_rows": lambda c, k: c.sum(0) + k,
    "mean_rows": lambda c, k: c * k.mean(0, keepdim=True),
    "amax_rows": lambda c, k: c.amax(0) + k.amin(0) + k,
    "argmax_rows": lambda c, k: c.argmax(0) + k,
    "median_rows": lambda c, k: c.median(0).values + k,
    "median_all": lambda c, k: c.median() + k,
    "prod_rows": lambda c, k: k * c.prod(0),
    "var_rows": lambda c, k: (k - k.mean(0)) / (k.var(0) + 1),
    "norm_rows": lambda c, k: k / k.norm(dim=0),
    "softmax_rows": lambda c, k: (c * k).softmax(0),
    "logsumexp_rows": lambda c, k: c.logsumexp(0) + k,
    "cumsum_rows": lambda c, k: (c * k).cumsum(0),
    "cumprod_rows": lambda c, k: c.cumprod(0) + k,
    "diff_rows": lambda c, k: torch.cat([k[:1], k.diff(dim=0)]) * c,
    "gram": lambda c, k: (c @ k.t()) @ k,
    "outer_product": lambda c, k: torch.outer(c[:, 0], k[:, 0]).sum(1, keepdim=True) + k,
    "covariance": lambda c, k: c @ torch.cov(k.t()),
    "attention_rows": lambda c, k: F.scaled_dot_product_attention(k[None], c[None], c[None])[0],
    "pool_rows": lambda c, k: F.max_pool1d((c + k).t()[None], 3, 1, 1)[0].t(),
    "convolution_rows": lambda c, k, w: F.conv1d((c * k).t()[None], w[:, :, None])[0].t(),
    "roll_rows": lambda c, k: c * k.roll(1, 0),
    "flip_rows": lambda c, k: c * k.flip(0),
    "rot90": lambda c, k: c @ torch.rot90(k) @ k,
    "first_row": lambda c, k: c * k[0],
    "every_second_row": lambda c, k: c * k[::2].sum(0),
    "rows_below": lambda c, k: torch.cat([k[1:], k[:1]]) + c,
    "trace": lambda c, k: c * torch.trace(k),
    "kron": lambda c, k: c + torch.kron(k[:, :1], k[:1, :1]),
    "searchsorted_rows": lambda c, k: torch.searchsorted(k[:, 0].sort().values, c),
    "all_rows": lambda c, k: (c > -9).all() * k,
    "unique_of_rows": lambda c, k: torch.unique(ids(c)).sum() + k,
    "bincount": lambda c, k: torch.bincount(ids(c[:, 0]), minlength=4)[:4] * k,
    "histogram": lambda c, k: torch.histc(c, 4, -3, 3) + k,
    "pairwise_of_rows": lambda c, k: torch.pdist(k).sum() + c,
}
MOVED = {  # sorts, scatters, gathers
    "sort": lambda c, k: c.sort(1).values * k,
    "sort_default": lambda c, k: c.sort().values + k.sort(descending=True).values,
    "sort_rows": lambda c, k: k.sort(0).values + c,
    "argsort_rows": lambda c, k: k[k[:, 0].argsort()] + c,
    "topk": lambda c, k: c.topk(2).values + k[:, :2],
    "kthvalue": lambda c, k: c.kthvalue(2).values[:, None] * k,
    "scatter_add_rows": lambda c, k: torch.zeros_like(k).index_add(0, ids(c[:, 0]), k) + c,
    "scatter": lambda c, k: torch.zeros_like(k).scatter(1, ids(c), k),
    "scatter_add": lambda c, k: c.scatter_add(1, ids(k), k),
    "scatter_rows": lambda c, k: c.scatter(0, ids(k).clamp(max=1), k),
    "gather": lambda c, k: c.gather(1, ids(k)),
    "gather_rows": lambda c, k: c.gather(0, ids(k).clamp(max=1)),
    "take_along": lambda c, k: torch.take_along_dim(c, ids(k), 1),
    "take": lambda c, k: c.take(ids(k)),
    "index_rows": lambda c, k: c[ids(k[:, 0]).clamp(max=1)],
    "index_two": lambda c, k, w: w[ids(c), ids(k)],
    "index_put": lambda c, k: k.index_put((torch.arange(k.shape[0]), ids(c[:, 0])), c[:, 0]),
    "index_copy": lambda c, k: c.index_copy(1, torch.tensor([2, 0]), k[:, :2]),
    "write_column": lambda c, k: written(c, k, slice(None), 1),
    "masked_fill": lambda c, k: c.masked_fill(k > 0, -1.0),
    "masked_scatter": lambda c, k: c.masked_scatter(k > 0, k),
    "masked_select": lambda c, k: (c * k).masked_select(k > 0).sum() + c,
    "nonzero": lambda c, k: (k > 0).nonzero().sum() + c,
    "where": lambda c, k: torch.where(k > c, k, c),
    "one_hot": lambda c, k: F.one_hot(ids(c[:, 0]), 4) * k,
    "embedding_padded": lambda c, k, w: F.embedding(ids(c[:, 0]), w, padding_idx=0) * k,
    "embedding_bag_weighted": lambda c, k, w: F.embedding_bag(ids(c), w, mode="sum", per_sample_weights=k),
    "bucketize": lambda c, k: torch.bucketize(c, torch.tensor([-1.0, 0.0, 1.0], dtype=c.dtype)) * k,
    "tril_indices": lambda c, k: c[:, torch.tril_indices(4, 4)[0, :4]] * k,
}
VIEWED = {  # views, and rows folded with other axes
    "flatten_all": lambda c, k: (c.flatten() * k.flatten()).view(-1, D),
    "unflatten": lambda c, k: c.unflatten(1, (2, 2)).sum(1) * k[:, :2],
    "transpose_all": lambda c, k: (c.t() + k.t()).t(),
    "fold_outside": lambda c, k: (
        F.layer_norm(c.view(-1, 2, 2).transpose(0, 1).reshape(-1, 2), [2]).view(2, -1, 2)[0] + k[:, :2]
    ),
    "fold_inside": lambda c, k: c.reshape(-1, 1).relu().view(-1, D) * k,
    "movedim": lambda c, k: c.view(-1, 2, 2).movedim(1, 0).sum(0) * k[:, :2],
    "permute": lambda c, k: (c.view(-1, 2, 2).permute(2, 0, 1) * k.view(-1, 2, 2).permute(2, 0, 1)).sum(0),
    "squeeze": lambda c, k: (c[:, :1] * k[:, :1]).squeeze(),
    "expand": lambda c, k: c[:, :1].expand(-1, D) * k,
    "repeat": lambda c, k: c.repeat(1, 2) * k.repeat(1, 2),
    "repeat_rows": lambda c, k: c.repeat(2, 1)[: k.shape[0]] * k,
    "repeat_interleave": lambda c, k: c.repeat_interleave(2, 1) * k.repeat_interleave(2, 1),
    "interleave_rows": lambda c, k: c.repeat_interleave(2, 0).view(-1, 2, D).sum(1) * k,
    "split": lambda c, k: sum(c.split(2, 1)) * k[:, :2],
    "chunk": lambda c, k: c.chunk(2, 1)[0] * k.chunk(2, 1)[1],
    "tensor_split": lambda c, k: c.tensor_split(3, 1)[0] * k[:, :2],
    "unbind_default": lambda c, k: torch.stack([c, k]).unbind()[0] * k,
    "diagonal": lambda c, k: torch.diagonal(square(c, k), 0, 1, 2) * k,
    "diag_embed": lambda c, k: (torch.diag_embed(c) @ k[..., None])[..., 0],
    "unfold": lambda c, k: c.unfold(1, 2, 1).sum(2) * k[:, :3],
    "unfold_rows": lambda c, k: c.unfold(0, 2, 1).sum() * k,
    "as_strided": lambda c, k: (c * 1).as_strided((c.shape[0], 2), (D, 1)) * k[:, :2],
    "pad": lambda c, k: F.pad(c, (1, 1)) + F.pad(k, (0, 2), value=3.0),
    "pad_rows": lambda c, k: F.pad(c, (0, 0, 1, 0))[1:] * k,
    "pad_reflect": lambda c, k: F.pad(c[:, None], (1, 1), mode="reflect")[:, 0, :D] * k,
    "stack": lambda c, k: torch.stack([c, k]).sum(0),
    "vstack": lambda c, k: torch.vstack([c, k]).view(2, -1, D).prod(0),
    "meshgrid": lambda c, k: torch.meshgrid(c[:, 0], k[:, 0], indexing="ij")[0].sum(1, keepdim=True) + k,
    "cartesian": lambda c, k: torch.cartesian_prod(c[:, 0], k[:, 0]).sum() + k,
    "flip": lambda c, k: c.flip(1) * k,
    "tril": lambda c, k: (square(c, k).tril() @ k[..., None])[..., 0],
    "block_diagonal": lambda c, k: torch.block_diag(c[:1], k[:1]).sum() + k,
    "view_as_complex": lambda c, k: torch.view_as_real(
        torch.view_as_complex(c.view(-1, 2, 2).contiguous()) * torch.view_as_complex(k.view(-1, 2, 2).contiguous())
    ).flatten(1),
}
STACKED = {  # rows under rows, by defaults that are left out
    "stacked": lambda c, k, w: F.linear(stacked(c, k), w)[: c.shape[0]] * k,
    "stacked_split": lambda c, k: torch.mul(*stacked(c, k).relu().split([c.shape[0], k.shape[0]])),
    "stacked_split_by_rows": lambda c, k: torch.mul(*stacked(c, k).relu().split(c.shape[0])),
    "stacked_chunk": lambda c, k: torch.sub(*stacked(c, k).tanh().chunk(2)),
    "stacked_view": lambda c, k: stacked(c, k).view(2, -1, D).prod(0),
    "stacked_other_view": lambda c, k: stacked(c, k).view(-1, 2, D).prod(1),
    "stacked_elsewhere": lambda c, k: stacked(c, k)[1 : c.shape[0] + 1] * k,
    "stacked_three": lambda c, k: torch.cat([c, k, c * k]).chunk(3)[2],
    "stacked_softmax": lambda c, k: stacked(c, k).softmax(0)[: c.shape[0]],
    "stacked_inside": lambda c, k: torch.cat([c.repeat_interleave(2, 0), k])[: c.shape[0]] * k,
    "stacked_ids": lambda c, k, w: torch.mul(*F.embedding(torch.cat([ids(c), ids(k)]), w).sum(1).chunk(2)),
    "stacked_bags": lambda c, k, w: (
        F.embedding_bag(torch.cat([ids(c[:, 0]), ids(k[:, 0])]), w, torch.arange(2 * c.shape[0])).view(2, -1, D).sum(0)
    ),
    "stacked_transposed": lambda c, k: torch.cat([c.t(), k.t()], 1).relu()[:, : c.shape[0]].t() * k,
}
LINEAR = {
    "bilinear": lambda c, k, w: F.bilinear(c, k, w[None].repeat(3, 1, 1)),
    "bmm": lambda c, k: torch.bmm(square(c, k), k[..., None])[..., 0],
    "baddbmm": lambda c, k: torch.baddbmm(c[..., None], square(c, k), k[..., None])[..., 0],
    "addmm": lambda c, k, w: torch.addmm(c, k, w, beta=2, alpha=3),
    "einsum": lambda c, k: torch.einsum("bi,bj->bij", c, k).flatten(1),
    "einsum_rows": lambda c, k: torch.einsum("bi,cj->bj", c, k),
    "tensordot": lambda c, k, w: torch.tensordot(c * k, w, 1),
    "cross": lambda c, k: torch.linalg.cross(c[:, :3], k[:, :3]),
    "inverse": lambda c, k: (torch.linalg.inv(square(c, k)) @ k[..., None])[..., 0],
    "solve": lambda c, k: torch.linalg.solve(square(c, k), k),
    "determinant": lambda c, k: torch.linalg.det(square(c, k))[:, None] * k,
    "cholesky": lambda c, k: torch.linalg.cholesky(square(c, c)).sum(-1) * k,
    "pinv": lambda c, k: (torch.linalg.pinv(square(c, k)) @ c[..., None])[..., 0],
    "svd": lambda c, k: torch.linalg.svdvals(square(c, k)) * k,
    "qr_of_rows": lambda c, k: torch.linalg.qr(k).R.abs().sum() + c,
    "matrix_exp": lambda c, k: (torch.matrix_exp(square(c, k) / 9) @ k[..., None])[..., 0],
    "conv1d": lambda c, k, w: F.conv1d((c * k)[:, None], w[:2, None, :3]).flatten(1),
    "conv_transpose": lambda c, k, w: F.conv_transpose1d((c * k)[:, None], w[:1, None, :3]).flatten(1),
    "attention": lambda c, k: F.scaled_dot_product_attention(
        c.view(-1, 2, 2), k.view(-1, 2, 2), k.view(-1, 2, 2), is_causal=True
    ).flatten(1),
}
POINTWISE = {
    "add_alpha": lambda c, k: torch.add(c, k, alpha=2),
    "sub_alpha": lambda c, k: torch.sub(c, k, alpha=2),
    "divide_unrounded": lambda c, k: torch.div(c, k.abs() + 1, rounding_mode=None),
    "floor_divide": lambda c, k: (c * 9) // (k.abs() + 1),
    "remainder": lambda c, k: (c * 9) % 4 + k,
    "clamp": lambda c, k: c.clamp(0) + k.clamp(max=1),
    "addcmul": lambda c, k: torch.addcmul(c, k, k, value=0.5),
    "gelu": lambda c, k: F.gelu(c * k) + F.gelu(c, approximate="tanh"),
    "leaky_relu": lambda c, k: F.leaky_relu(c * k) + F.leaky_relu(k, 0.5),
    "glu": lambda c, k: F.glu(torch.cat([c, k], 1)),
    "nan_to_num": lambda c, k: (c / k.relu()).nan_to_num(),
    "logit": lambda c, k: torch.logit(c.sigmoid(), 1e-6) * k,
    "round": lambda c, k: (c * k).round(decimals=1),
    "quantized": lambda c, k: torch.fake_quantize_per_tensor_affine(c.float(), 0.1, 0, -128, 127) * k,
    "casts": lambda c, k: c.to(torch.float32).double() * k.half().to(k.dtype),
    "bits": lambda c, k: (ids(c) & ids(k)) + (ids(c) ^ 1) * k,
    "rows_as_number": lambda c, k: c * k / k.shape[0],
    "full_of_rows": lambda c, k: c * k / torch.full((1,), k.shape[0], dtype=c.dtype),
    "scalar_of_rows": lambda c, k: c * k / torch.stack([torch.scalar_tensor(k.shape[0]), torch.ones(())]).cumsum(0)[1],
    "full_like": lambda c, k: torch.full_like(c, 2.0) * k + torch.ones_like(k) + torch.zeros(k.shape[0], 1),
    "linspace": lambda c, k: c * torch.linspace(0, 1, 4, dtype=c.dtype) + k,
    "arange_rows": lambda c, k: torch.arange(k.shape[0])[:, None] * c + k,
    "complex": lambda c, k: torch.complex(c, k).abs(),
    "fft": lambda c, k: torch.fft.rfft(c * k).real,
}
REDUCED = {
    "sum_default": lambda c, k: (c * k).sum(-1),
    "norm": lambda c, k: (c * k).norm(dim=1),
    "vector_norm": lambda c, k: torch.linalg.vector_norm(c + k, 3, 1),
    "cosine": lambda c, k: F.cosine_similarity(c, k),
    "pairwise_distance": lambda c, k: F.pairwise_distance(c, k),
    "aminmax": lambda c, k: torch.aminmax(c * k, dim=1).max,
    "cumsum": lambda c, k: c.cumsum(1) * k,
    "diff": lambda c, k: c.diff() * k.diff(),
    "trapezoid": lambda c, k: torch.trapezoid(c * k),
    "quantile": lambda c, k: torch.quantile(c * k, 0.5, dim=1),
    "softmax": lambda c, k: (c * k).softmax(-1) + F.softmin(k, 1),
    "layer_norm": lambda c, k: F.layer_norm(c * k, [D]),
    "group_norm": lambda c, k: F.group_norm(c * k, 2),
    "batch_norm": lambda c, k, w: F.batch_norm(c * k, w[0], w[1].abs() + 1),
    "local_response_norm": lambda c, k: F.local_response_norm((c * k)[..., None], 2)[..., 0],
    "max_pool": lambda c, k: F.max_pool1d((c * k)[:, None], 2)[:, 0],
    "adaptive_pool": lambda c, k: F.adaptive_avg_pool1d((c * k)[:, None], 2)[:, 0],
    "interpolate": lambda c, k: F.interpolate((c * k)[:, None], scale_factor=2)[:, 0],
    "cross_entropy": lambda c, k: F.cross_entropy(c * k, ids(k[:, 0]), reduction="none"),
}
ASSERTED = {
    "asserted": asserted, "number_asserted": number_asserted, "sizes_asserted": sizes_asserted, "printed": printed,
}  # fmt: skip
CASES = MEET | MOVED | VIEWED | STACKED | LINEAR | POINTWISE | REDUCED | ASSERTED

REFUSED = {  # by torch.export: what is left for the number of rows, and what it does not take at all
    "diff_rows", "pool_rows", "kron", "qr_of_rows", "covariance",
    *(["quantile"] if torch.__version__ < "2.12" else []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_line(name: str):
    call = CASES[name]
    weights = {"w": W} if "w" in call.__code__.co_varnames[: call.__code__.co_argcount] else {}
    model = Function(call, **weights).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            program = capture(model, (CONTEXT[torch.arange(N) % 3], CANDIDATE), ["context"], all_rules())
        except RankhoistError as refusal:
            assert name in REFUSED and "please report" not in str(refusal), f"{name} is refused: {refusal}"
            return
    assert name not in REFUSED, f"{name} is not refused any more"
    one, three = repeated(CONTEXT[:1], [0, N]), repeated(CONTEXT, OFFSETS)
    models = at_every_level(program, LEVELS[:-1]) | {LEVELS[-1]: hoist_program(program)}
    for level, hoisted in models.items():
        assert_equal(hoisted(CONTEXT[:1], CANDIDATE), model(one, CANDIDATE), f"{name}, {level.name}, one request")
        found = hoisted(CONTEXT, CANDIDATE, request_offsets=OFFSETS)
        assert_equal(found, model(three, CANDIDATE), f"{name}, {level.name}, three requests")
        assert not [r for r in hoisted.plan.reasons.values() if "please report" in r]
