"""The layers and models against their formulas, their documented sizes, and torch.export with a free row count."""

import pytest
import torch
from torch import nn

from rankhoist.nn import MLP, CrossNetV2, DCNv2, DeepFM, FactorizationMachine, FeatureEmbedding, Field
from rankhoist.nn.embedding import masked_mean

FIELDS = (
    Field("user", "id", 11, 6),
    Field("history", "ids", 13, 6, "item"),
    Field("stats", "dense", 4, 6),
    Field("item", "id", 13, 6, "item"),
)
RAW_FIELDS = (*FIELDS[:2], Field("stats", "dense", 4, 0), FIELDS[3])

MODELS = {
    "parallel": lambda: DCNv2(RAW_FIELDS, cross_layers=2, hidden=(8, 5)),
    "stacked": lambda: DCNv2(RAW_FIELDS, cross_layers=2, hidden=(8, 5), structure="stacked", dropout=0.1),
    "low rank": lambda: DCNv2(RAW_FIELDS, cross_layers=3, low_rank=3, hidden=(8,), batch_norm=False),
    "deepfm": lambda: DeepFM(FIELDS, hidden=(8, 5), dropout=0.1),
}


def make_features(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    history = torch.randint(0, 13, (rows, 5), generator=make)
    history[::3] = 0
    return {
        "user": torch.randint(0, 11, (rows,), generator=make),
        "history": history,
        "stats": torch.randn(rows, 4, generator=make),
        "item": torch.randint(0, 13, (rows,), generator=make),
    }


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("low_rank", [None, 2])
def test_a_cross_layer_is_its_formula(low_rank):
    net, x = CrossNetV2(5, 3, low_rank=low_rank), torch.randn(4, 5)
    expected = x
    for layer in net.layers:
        if low_rank is None:
            weight, bias = layer.weight, layer.bias
        else:
            weight, bias = layer[1].weight @ layer[0].weight, layer[1].bias
        expected = x * (expected @ weight.T + bias) + expected
    torch.testing.assert_close(net(x), expected)
    assert count(net) == 3 * ((25 if low_rank is None else 2 * 2 * 5) + 5)


def test_the_factorisation_machine_sums_all_pairs():
    vectors = torch.randn(3, 5, 4, dtype=torch.float64)
    pairs = sum((vectors[:, i] * vectors[:, j]).sum(dim=1) for i in range(5) for j in range(i + 1, 5))
    torch.testing.assert_close(FactorizationMachine()(vectors), pairs)


def test_a_list_is_the_mean_of_its_entries():
    rows = torch.randn(3, 4, 2)
    mask = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    expected = torch.stack([(rows[0, 0] + rows[0, 2]) / 2, torch.zeros(2), rows[2].mean(dim=0)])
    torch.testing.assert_close(masked_mean(rows, mask), expected)


def test_padding_in_a_list_changes_nothing():
    embedding, features = FeatureEmbedding(FIELDS), make_features(6)
    longer = features | {"history": torch.cat([features["history"], torch.zeros(6, 3, dtype=torch.int64)], dim=1)}
    for short, padded in zip(embedding(features), embedding(longer), strict=True):
        torch.testing.assert_close(short, padded)


def test_fields_of_one_table_share_its_weights():
    embedding, features = FeatureEmbedding(FIELDS), make_features(2)
    features["history"] = features["item"].unsqueeze(1).clamp(min=1)
    features["item"] = features["history"][:, 0]
    _, history, _, item = embedding(features)
    torch.testing.assert_close(history, item)
    assert count(embedding) == 11 * 6 + 13 * 6 + 4 * 6
    assert embedding.widths == (6, 6, 6, 6) and FeatureEmbedding(RAW_FIELDS).width == 22


def test_dense_fields_pass_or_are_projected():
    features = make_features(3)
    assert torch.equal(FeatureEmbedding(RAW_FIELDS)(features)[2], features["stats"])
    projected = FeatureEmbedding(FIELDS)
    expected = features["stats"] @ projected.projections["stats"].weight.T
    torch.testing.assert_close(projected(features)[2], expected)


def test_a_table_of_two_shapes_is_refused():
    with pytest.raises(ValueError, match=r"field 'b' wants table 't' of \[3, 5\].*\[3, 4\]"):
        FeatureEmbedding([Field("a", "id", 3, 4, "t"), Field("b", "id", 3, 5, "t")])


def test_deepfm_wants_one_width():
    with pytest.raises(ValueError, match="one width above 0"):
        DeepFM(RAW_FIELDS)


def test_mlp_is_its_layers():
    mlp, x = MLP(4, (3, 2)), torch.randn(5, 4)
    first, _, second, _ = mlp.steps
    torch.testing.assert_close(mlp(x), second(first(x).relu()).relu())
    assert mlp.width == 2 and count(mlp) == 5 * 3 + 4 * 2
    assert count(MLP(4, (3, 2), batch_norm=True)) == 5 * 3 + 4 * 2 + 2 * (3 + 2)


def test_documented_parameter_counts():
    embedding, width = 11 * 6 + 13 * 6, 22
    mlp = (width + 1) * 8 + 9 * 5 + 2 * (8 + 5)
    cross = 2 * (width * width + width)
    assert count(MODELS["parallel"]()) == embedding + cross + mlp + (width + 5 + 1)
    assert count(MODELS["stacked"]()) == embedding + cross + mlp + (5 + 1)
    fields = (11 + 13 + 4) * (6 + 1)
    assert count(MODELS["deepfm"]()) == fields + (24 + 1) * 8 + 9 * 5 + 2 * (8 + 5) + (5 + 1)


def test_deepfm_is_first_order_and_pairs_and_mlp():
    model, features = MODELS["deepfm"]().eval(), make_features(5)
    vectors = model.embedding(features)
    pairs = sum((vectors[i] * vectors[j]).sum(dim=1) for i in range(4) for j in range(i + 1, 4))
    deep = model.head(model.mlp(torch.cat(vectors, dim=1)))[:, 0]
    expected = sum(model.first_order(features))[:, 0] + pairs + deep
    torch.testing.assert_close(model(features), expected)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name):
    model = MODELS[name]()
    model(make_features(64)).square().sum().backward()
    idle = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert not idle


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_independent_in_eval_mode(name):
    model, features = MODELS[name]().eval(), make_features(7)
    whole = model(features)
    assert whole.shape == (7,)
    for row in range(7):
        one = model({key: value[row : row + 1] for key, value in features.items()})
        torch.testing.assert_close(one, whole[row : row + 1])


@pytest.mark.parametrize("name", MODELS)
def test_models_export_with_a_free_row_count(name):
    model = MODELS[name]().eval()
    rows = torch.export.Dim("rows", min=2, max=1 << 20)
    shapes = ({key: {0: rows} for key in make_features(4)},)
    exported = torch.export.export(model, (make_features(4),), dynamic_shapes=shapes).module()
    for n in (2, 5, 100):
        features = make_features(n, seed=n)
        torch.testing.assert_close(exported(features), model(features))
