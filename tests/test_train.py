"""Training: the AUC against its definition, one seed one result, the best epoch kept, real-sized models."""

import math

import numpy as np
import pytest
import torch

from rankhoist.data import RankingData, generate_request_log
from rankhoist.demo.train import MODEL_NAMES, auc, bayes_auc, build_model, log_loss, predict, train


@pytest.fixture(scope="module")
def data() -> RankingData:
    return generate_request_log(6000, seed=0, items=100, users=20)


def auc_by_definition(labels: np.ndarray, scores: np.ndarray) -> float:
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None, :]
    return float(((positive > negative) + 0.5 * (positive == negative)).mean())


@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_auc_is_its_definition_with_ties(levels):
    rng = np.random.default_rng(levels)
    labels, scores = rng.integers(0, 2, 300), rng.integers(0, levels, 300) / levels
    assert auc(labels, scores) == pytest.approx(auc_by_definition(labels, scores), abs=1e-12)
    assert auc(torch.tensor(labels), torch.tensor(scores)) == auc(labels, scores)


def test_auc_of_plain_cases():
    labels = np.array([0, 0, 1, 1])
    assert auc(labels, np.array([1.0, 2.0, 3.0, 4.0])) == 1.0
    assert auc(labels, np.array([4.0, 3.0, 2.0, 1.0])) == 0.0
    assert auc(labels, np.zeros(4)) == 0.5
    assert math.isnan(auc(np.ones(3), np.arange(3.0)))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_training_learns_and_repeats(name, data):
    results, weights = [], []
    for _ in range(2):
        model = build_model(name, data, seed=1)
        results.append(train(model, data, epochs=2, batch_size=256, seed=1, progress=False))
        weights.append(model.state_dict())
    first, second = results
    assert first.test_auc == second.test_auc and first.validation_logloss == second.validation_logloss
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert 0.62 < first.test_auc < bayes_auc(data) + 0.01
    base = data.labels[data.train].mean()
    chance = log_loss(data.labels[data.test], torch.full((len(data.labels[data.test]),), float(base.logit())))
    assert first.test_logloss < chance


def test_seeds_differ_and_global_settings_stay(data):
    threads = torch.get_num_threads()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    models = [build_model("deepfm", data, seed=seed) for seed in (0, 0, 1)]
    train(models[0], data, epochs=1, batch_size=4096, progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert torch.equal(build_model("deepfm", data, seed=0).head.weight, models[1].head.weight)
    assert not torch.equal(models[1].head.weight, models[2].head.weight)


def test_the_best_epoch_is_kept_and_training_stops_early(data):
    model = build_model("deepfm", data)
    # At this rate the model soon learns the training rows by heart.
    result = train(model, data, epochs=12, batch_size=256, learning_rate=1e-2, progress=False)
    assert result.best_epoch < result.epochs < 12
    assert result.validation_logloss == min(result.epoch_losses) == result.epoch_losses[result.best_epoch - 1]
    logits = predict(model, data, data.validation)
    assert not model.training
    assert log_loss(data.labels[data.validation], logits) == result.validation_logloss
    assert auc(data.labels[data.validation], logits) == result.validation_auc


def test_progress_is_quiet_where_there_is_no_terminal(data, capfd):
    train(build_model("deepfm", data), data, epochs=1, batch_size=4096, progress=True)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_models_are_real_sized(data):
    sides = {}
    for name in MODEL_NAMES:
        embedding = build_model(name, data).embedding
        context = sum(
            w for field, w in zip(embedding.fields, embedding.widths, strict=True) if field.name in data.context
        )
        sides[name] = (context, embedding.width - context)
    assert sides == {"dcnv2": (416, 152), "deepfm": (360, 160)}


def test_an_unknown_model_is_named(data):
    with pytest.raises(ValueError, match="no model named 'dlrm'; choose from dcnv2, deepfm"):
        build_model("dlrm", data)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_trained_models_export_with_a_free_row_count(name, data):
    model = build_model(name, data).eval()
    example = data.example(8)
    rows = torch.export.Dim("rows", min=2, max=1 << 20)
    shapes = ({key: {0: rows} for key in example},)
    exported = torch.export.export(model, (example,), dynamic_shapes=shapes).module()
    row = data.draw_row()
    request = data.request(row, data.choices(row)).rows()
    assert len(request["movie_id"]) > 2
    torch.testing.assert_close(exported(request), model(request))
