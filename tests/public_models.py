"""Ranking and multi-task models of DeepCTR-Torch and torch-rechub, built with random weights.

DeepCTR-Torch models take one packed float matrix `X [rows, columns]`, those of torch-rechub a dict of tensors. Fields
of the context and of the candidate take turns, so that neither kind is one run of columns. `Case.model` draws weights,
norm statistics and biases until the scores differ between rows and are not saturated: else a wrong rewrite could hide.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist import Split
from rankhoist.capture import Program, capture

Batch = dict[str, Tensor]
GAINS = (1.0, 1.4, 0.7, 1.6, 1.8, 2.0, 2.2, 2.5, 0.5, 3.0)  # tried in turn


# -- fields and batches


@dataclass(frozen=True)
class Field:
    """One input.

    An id below `ids` (a number where `ids` is 0), or a history of `length` ids padded with 0 at its end. `like` names a
    history whose lengths this one has too; with no ids of its own, the field is that history's length.
    """

    name: str
    context: bool
    ids: int = 0
    length: int = 0
    like: str = ""
    low: int = 0


@dataclass(frozen=True)
class Scale:
    """Numbers of id fields, embedding width, and width of a layer."""

    context: int = 4
    candidate: int = 3
    embedding: int = 4
    width: int = 12

    def fields(self) -> list[Field]:
        """Id fields, context and candidate in turn as long as there are both."""
        user = [Field(f"u{i}", True, 11 + 6 * (i % 4)) for i in range(self.context)]
        item = [Field(f"i{i}", False, 13 + 6 * (i % 4)) for i in range(self.candidate)]
        return _in_turn(user, item)


TEST = Scale()
SCALES = {
    "narrow": Scale(5, 3, 8, 64),
    "mid": Scale(8, 5, 8, 64),
    "wide": Scale(16, 10, 8, 64),
}
NUMBERS = [Field("un0", True), Field("in0", False), Field("un1", True)]


def _in_turn(first: list[Field], second: list[Field]) -> list[Field]:
    pairs = [f for pair in zip(first, second, strict=False) for f in pair]
    return pairs + first[len(second) :] + second[len(first) :]


def draw(fields: Mapping[str, Field], rows: int, seed: int, dtype: torch.dtype) -> Batch:
    """Independent rows of every field; histories hold one id at least, and the first row's are full."""
    g = torch.Generator().manual_seed(seed)
    lengths: dict[str, Tensor] = {}
    batch: Batch = {}
    for name, f in fields.items():
        if f.length and not f.like:
            lengths[name] = torch.randint(1, f.length + 1, (rows,), generator=g)
            lengths[name][0] = f.length
        if f.length:
            ids = torch.randint(1, f.ids, (rows, f.length), generator=g)
            batch[name] = ids * (torch.arange(f.length) < lengths[f.like or name][:, None])
        elif f.like:
            batch[name] = lengths[f.like]
        elif f.ids:
            batch[name] = torch.randint(f.low, f.ids, (rows,), generator=g)
        else:
            batch[name] = torch.randn(rows, generator=g, dtype=torch.float64).to(dtype)
    return batch


# -- cases


@dataclass(frozen=True)
class Case:
    """A public model.

    Attributes:
        build: the model at one scale, in any mode, with any weights.
        packed: whether it takes one matrix `X`, with the columns in the order of `fields`.
        often: in the ordinary test run; the other cases are marked slow.
        dtype: float64 where the model runs in it.
        alone: False for a model that fails, or loses its row axis, on a batch of one.
    """

    name: str
    fields: dict[str, Field]
    build: Callable[[], nn.Module]
    packed: bool = False
    often: bool = False
    dtype: torch.dtype = torch.float64
    alone: bool = True

    @property
    def context(self) -> Any:
        """The `context` argument of `hoist`."""
        names = [f.name for f in self.fields.values() if f.context]
        if not self.packed:
            return names
        owners = [f for f in self.fields.values() for _ in range(max(f.length, 1))]
        return {"X": [i for i, f in enumerate(owners) if f.context]}

    def rows(self, count: int, seed: int = 0) -> Batch:
        """Whole rows, context and candidate."""
        return draw(self.fields, count, seed, self.dtype)

    def original_inputs(self, batch: Batch) -> tuple[Any, ...]:
        """What the original model is called with."""
        return (_pack(batch, self.dtype),) if self.packed else (batch,)

    def hoisted_inputs(self, context: Batch, candidate: Batch) -> tuple[Any, ...]:
        """What the hoisted model is called with, from whole rows of which each side is read."""
        context = {n: t for n, t in context.items() if self.fields[n].context}
        candidate = {n: t for n, t in candidate.items() if not self.fields[n].context}
        if self.packed:
            return (Split(_pack(context, self.dtype), _pack(candidate, self.dtype)),)
        return (context | candidate,)

    def repeated(self, context: Batch, candidate: Batch, owner: Tensor) -> Batch:
        """Context rows repeated for the candidates that they own."""
        return {n: context[n][owner] if f.context else candidate[n] for n, f in self.fields.items()}

    def model(self) -> nn.Module:
        """In eval mode, with weights under which the scores say something."""
        model = self.build().eval().to(self.dtype).requires_grad_(False)
        inputs = self.original_inputs(self.rows(64, seed=5))
        for seed, gain in itertools.product(range(3), GAINS):
            randomise(model, gain, seed)
            if all(lively(scores) for scores in outputs(model(*inputs))):
                return model
        raise ValueError(f"{self.name}: scores are flat or saturated under every gain")

    def captured(self, model: nn.Module) -> Program:
        """Exported once, for all levels."""
        return capture(model, self.original_inputs(self.rows(4)), self.context)


def _pack(batch: Batch, dtype: torch.dtype) -> Tensor:
    return torch.cat([t.to(dtype).reshape(len(t), -1) for t in batch.values()], 1)


# -- weights and scores


@torch.no_grad()
def randomise(model: nn.Module, gain: float, seed: int) -> None:
    """Matrices `gain * N(0, 1 / fan)`, tables 0.3 N(0, 1) or less, vectors near what they start from, norms."""
    g = torch.Generator().manual_seed(seed)

    def normal(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype)

    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                weight.copy_(0.3 * min(gain, 1.0) * normal(weight))
                if module.padding_idx is not None:
                    weight[module.padding_idx] = 0
            elif weight.dim() > 1:
                weight.copy_(gain * max(weight.shape[-2:]) ** -0.5 * normal(weight))
            else:
                start = 1.0 if "Norm" in type(module).__name__ and name == "weight" else 0.0
                weight.copy_(start + 0.2 * normal(weight))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(0.2 * normal(module.running_mean))
            module.running_var.copy_(1 + normal(module.running_var).clamp(-2, 2) / 4)


def outputs(result: Any) -> list[Tensor]:
    """The floating tensors of a model's result."""
    return [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]


def lively(scores: Tensor) -> bool:
    """Finite, different between rows, and where they are probabilities, hardly any near 0 or 1."""
    if not scores.isfinite().all() or bool((scores.std(0) < 0.03).any()):
        return False
    probabilities = bool(((scores >= 0) & (scores <= 1)).all())
    return not probabilities or bool(((scores > 0.97) | (scores < 0.01)).double().mean() < 0.1)


# -- DeepCTR-Torch


def _packed(fields: list[Field], pooling: str, embedding: int) -> tuple[list[Any], dict[str, Field]]:
    """Feature columns, and the fields in the order in which the library packs them."""
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat, build_input_features

    counts = {f.like: f.name for f in fields if f.like and not f.length}
    columns: list[Any] = []
    for f in fields:
        table = SparseFeat(f.name, f.ids or 1, embedding, embedding_name=f.name.removeprefix("hist_"))
        if f.length:
            count = counts.get(f.like or f.name)
            columns.append(VarLenSparseFeat(table, maxlen=f.length, combiner=pooling, length_name=count))
        elif f.ids:
            columns.append(table)
        elif not f.like:
            columns.append(DenseFeat(f.name, 1))
    named = {f.name: f for f in fields}
    return columns, {name: named[name] for name in build_input_features(columns)}


def _deepctr(
    name: str, fields: list[Field], scale: Scale, *, pooling: str = "mean", one: bool = False, history: Any = None,
    crossed_numbers: bool = True, **options: Any,
) -> Case:  # fmt: skip
    """A model by the name of its class, up to a comma; most take the columns twice: linear part, deep part."""
    from deepctr_torch import models

    about = {k: options.pop(k) for k in ("often", "alone", "dtype") if k in options}
    columns, packed = _packed(fields, pooling, scale.embedding)
    deep = columns if crossed_numbers else [c for c in columns if hasattr(c, "vocabulary_size")]
    given = (columns, history) if history else (columns,) if one else (columns, deep)
    kind = getattr(models, name.split(",")[0])
    return Case(f"deepctr.{name}", packed, lambda: kind(*given, **options), True, **about)


PURCHASES = [
    Field("user", True, 23), Field("item", False, 31, low=1), Field("age", True), Field("kind", False, 11, low=1),
    Field("price", False), Field("hist_item", True, 31, 6), Field("hist_kind", True, 11, 6, "hist_item"),
    Field("hist_length", True, like="hist_item"),
]  # fmt: skip
BAGS = [Field("seen", True, 23, 5), Field("tags", False, 17, 3), Field("tag_count", False, like="tags")]


def deepctr_cases(s: Scale) -> Iterator[Case]:
    """Models of DeepCTR-Torch."""
    ids, fields, w = s.fields(), s.fields() + NUMBERS, s.width
    deep, tower = dict(dnn_hidden_units=(2 * w, w)), dict(tower_dnn_hidden_units=(w,))
    experts = dict(expert_dnn_hidden_units=(2 * w, w), gate_dnn_hidden_units=(w,), one=True) | tower
    yield _deepctr("WDL", fields, s, often=True, **deep)
    yield _deepctr("WDL,batch_norm", fields, s, dnn_use_bn=True, **deep)
    yield _deepctr("DeepFM", fields, s, often=True, **deep)
    yield _deepctr("DeepFM,prelu", fields, s, dnn_use_bn=True, dnn_activation="prelu", **deep)
    yield _deepctr("xDeepFM", fields, s, often=True, cin_layer_size=(w, w), **deep)
    yield _deepctr("AFM", fields, s, crossed_numbers=False)
    yield _deepctr("DIFM", fields, s, **deep)
    yield _deepctr("IFM", fields, s, **deep)
    yield _deepctr("AutoInt", fields, s, often=True, att_layer_num=2, **deep)
    yield _deepctr("DCN", fields, s, often=True, **deep)
    yield _deepctr("DCN,matrix", fields, s, cross_parameterization="matrix", cross_num=3, **deep)
    yield _deepctr("DCNMix", fields, s, low_rank=4, num_experts=2, alone=False, **deep)
    yield _deepctr("FiBiNET", fields, s, often=True, **deep)
    yield _deepctr("FiBiNET,all", fields, s, bilinear_type="all", **deep)
    yield _deepctr("FiBiNET,each", fields, s, bilinear_type="each", **deep)
    yield _deepctr("NFM", fields, s, **deep)
    yield _deepctr("MLR", fields, s, one=True)
    yield _deepctr("ONN", fields, s, **deep)
    yield _deepctr("PNN,inner", fields, s, one=True, **deep)
    yield _deepctr("PNN,outer_mat", fields, s, one=True, use_outter=True, **deep)
    yield _deepctr("PNN,outer_vec", fields, s, one=True, use_inner=False, use_outter=True, kernel_type="vec", **deep)
    yield _deepctr("PNN,outer_num", fields, s, one=True, use_inner=False, use_outter=True, kernel_type="num", **deep)
    yield _deepctr("CCPM", ids, s, dnn_hidden_units=(w,))
    yield _deepctr("AFN", fields, s, ltl_hidden_size=w, afn_dnn_hidden_units=(2 * w, w))
    yield _deepctr("SharedBottom", fields, s, one=True, bottom_dnn_hidden_units=(2 * w, w), **tower)
    yield _deepctr("ESMM", fields, s, one=True, tower_dnn_hidden_units=(2 * w, w))
    yield _deepctr("MMOE", fields, s, often=True, **experts)
    yield _deepctr("PLE", fields, s, often=True, **experts)
    attention = dict(history=["item", "kind"], att_hidden_size=(w, w))
    softmax = dict(att_weight_normalization=True, att_activation="relu")
    yield _deepctr("DIN", PURCHASES, s, often=True, **attention, **deep)
    yield _deepctr("DIN,softmax", PURCHASES, s, **softmax, **attention, **deep)
    yield _deepctr("DeepFM,mean_bags", fields + BAGS, s, **deep)
    yield _deepctr("DCN,sum_bags", fields + BAGS, s, pooling="sum", **deep)


def deepctr_dien(s: Scale) -> Case:
    """Its recurrent layers run over packed sequences of those rows alone that have any, which does not export."""
    return _deepctr("DIEN", PURCHASES, s, history=["item", "kind"], gru_type="AUGRU", dtype=torch.float32)


# -- torch-rechub


def _features(fields: list[Field], embedding: int, pooling: str = "mean") -> list[Any]:
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature

    made: list[Any] = []
    for f in fields:
        if f.length:
            shared = f.name.removeprefix("hist_") if f.name.startswith("hist_") else None
            made.append(SequenceFeature(f.name, f.ids, embedding, pooling=pooling, shared_with=shared, padding_idx=0))
        elif f.ids:
            made.append(SparseFeature(f.name, f.ids, embedding))
        else:
            made.append(DenseFeature(f.name))
    return made


def _rechub(name: str, fields: list[Field], build: Callable[[], nn.Module], **options: Any) -> Case:
    return Case(f"rechub.{name}", {f.name: f for f in fields}, build, **options)


def rechub_cases(s: Scale) -> Iterator[Case]:
    """Models of torch-rechub."""
    yield from _rechub_ranking(s)
    yield from _rechub_field_pairs(s)
    yield from _rechub_histories(s)
    yield from _rechub_tasks(s)


def _mlp(s: Scale) -> dict[str, Any]:
    return dict(dims=[2 * s.width, s.width], dropout=0.1)


def _rechub_ranking(s: Scale) -> Iterator[Case]:
    from torch_rechub.models import ranking as r

    ids, mixed = s.fields(), s.fields() + NUMBERS

    def f(fields: list[Field]) -> list[Any]:
        return _features(fields, s.embedding)

    def cross(structure: str, mixture: bool) -> nn.Module:
        return r.DCNv2(f(mixed), 3, _mlp(s), structure, use_low_rank_mixture=mixture, low_rank=4, num_experts=2)

    yield _rechub("WideDeep", mixed, lambda: r.WideDeep(f(mixed), f(mixed), _mlp(s)), often=True)
    yield _rechub("DeepFM", mixed, lambda: r.DeepFM(f(mixed), f(ids), _mlp(s)), often=True)
    bags = [*mixed, *BAGS[:2]]
    yield _rechub("DeepFM,bags", bags, lambda: r.DeepFM(f(bags), f([*ids, *BAGS[:2]]), _mlp(s)), dtype=torch.float32)
    yield _rechub("DCN", mixed, lambda: r.DCN(f(mixed), 3, _mlp(s)), often=True)
    yield _rechub("DCNv2,full", mixed, lambda: cross("parallel", False), often=True)
    for structure in ("parallel", "stacked", "crossnet_only"):
        yield _rechub(
            f"DCNv2,mixture,{structure}", mixed, lambda x=structure: cross(x, True), often=structure == "parallel",
            alone=False,
        )  # fmt: skip
    for bridge in ("hadamard_product", "pointwise_addition", "concatenation", "attention_pooling"):
        yield _rechub(f"EDCN,{bridge}", ids, lambda x=bridge: r.EDCN(f(ids), 2, dict(dropout=0.1), x))


def _rechub_field_pairs(s: Scale) -> Iterator[Case]:
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models import ranking as r

    ids, numbers, width = s.fields(), NUMBERS, s.embedding
    features = _features(ids, width)
    yield _rechub("AFM", ids, lambda: r.AFM(features, width, t=s.width))
    for kind in ("all", "each", "interaction"):
        yield _rechub(
            f"FiBiNet,{kind}", ids, lambda x=kind: r.FiBiNet(features, _mlp(s), bilinear_type=f"field_{x}"),
            often=kind == "interaction",
        )  # fmt: skip

    def aware(kind: Any, **options: Any) -> nn.Module:
        linear = [SparseFeature(f.name, f.ids, 1) for f in ids]
        crossed = [SparseFeature(f.name, f.ids * len(ids), width) for f in ids]
        return kind(linear, crossed, width, mlp_params=_mlp(s), **options)

    yield _rechub("DeepFFM", ids, lambda: aware(r.DeepFFM))
    yield _rechub("FatDeepFFM", ids, lambda: aware(r.FatDeepFFM, reduction_ratio=1))

    def autoint() -> nn.Module:
        return r.AutoInt(_features(ids, width), _features(numbers, width), 2, 2, mlp_params=_mlp(s))

    yield _rechub("AutoInt", ids + numbers, autoint, often=True, dtype=torch.float32)


def _rechub_histories(s: Scale) -> Iterator[Case]:
    from torch_rechub.models import ranking as r

    inputs, profile, past, target = _purchases(s)

    def din(softmax: bool) -> nn.Module:
        unit = dict(dims=[s.width], activation="dice", use_softmax=softmax)
        return r.DIN(profile, past, target, dict(dims=[2 * s.width, s.width]), unit)

    def bst() -> nn.Module:
        return r.BST(profile, past, target, _mlp(s), nhead=2, num_layers=2, max_seq_len=7)

    yield _rechub("DIN", inputs, lambda: din(False), often=True)
    yield _rechub("DIN,softmax", inputs, lambda: din(True))
    yield _rechub("BST", inputs, bst, often=True)


def _purchases(s: Scale) -> tuple[list[Field], list[Any], list[Any], list[Any]]:
    inputs = [f for f in PURCHASES if f.ids]
    profile = _features([f for f in inputs if f.name == "user"], s.embedding)
    past = _features([f for f in inputs if f.length], s.embedding, "concat")
    target = _features([f for f in inputs if not f.context], s.embedding)
    return inputs, profile, past, target


def _rechub_tasks(s: Scale) -> Iterator[Case]:
    from torch_rechub.models import multi_task as t

    ids, mixed, two = s.fields(), s.fields() + NUMBERS, ["classification", "classification"]
    layers = dict(dims=[2 * s.width, s.width])

    def f(fields: list[Field]) -> list[Any]:
        return _features(fields, s.embedding)

    def towers() -> list[dict[str, Any]]:
        return [dict(dims=[s.width]), dict(dims=[s.width])]

    def esmm() -> nn.Module:
        user, item = ([x for x in ids if x.context is side] for side in (True, False))
        return t.ESMM(f(user), f(item), dict(layers), dict(layers))

    yield _rechub("SharedBottom", mixed, lambda: t.SharedBottom(f(mixed), two, dict(layers), towers()))
    yield _rechub("ESMM", ids, esmm)
    yield _rechub("MMOE", mixed, lambda: t.MMOE(f(mixed), two, 3, dict(layers), towers()), often=True)
    yield _rechub("PLE", mixed, lambda: t.PLE(f(mixed), two, 2, 1, 1, dict(layers), towers()), often=True)
    yield _rechub("AITM", mixed, lambda: t.AITM(f(mixed), 2, dict(layers), towers()), often=True)


def rechub_mind(s: Scale) -> Case:
    """Its routing starts from random numbers that `forward` draws."""
    from torch_rechub.models.matching import MIND

    inputs = [Field("user", True, 23), Field("item", False, 31)]
    inputs += [Field("hist_item", True, 31, 6), Field("other", False, 31, 2)]
    user, item, past, other = (_features([f], s.embedding, "concat") for f in inputs)
    other[0].shared_with = "item"

    def build() -> nn.Module:
        return MIND(user, past, item, other, max_length=6, interest_num=2)

    return _rechub("MIND", inputs, build, dtype=torch.float32)


def rechub_narm(s: Scale) -> Case:
    """Its recurrent layer runs over packed sequences."""
    from torch_rechub.models.matching import NARM

    inputs = [Field("hist_item", True, 31, 6), Field("item", False, 31)]
    (past,), (item,) = (_features([f], s.embedding, "concat") for f in inputs)
    return _rechub("NARM", inputs, lambda: NARM(past, s.width, 0.1, 0.1, item_feature=item), dtype=torch.float32)


def cases(scale: Scale = TEST) -> list[Case]:
    """All models that can be hoisted."""
    return [*deepctr_cases(scale), *rechub_cases(scale)]
