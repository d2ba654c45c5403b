"""Training: metrics against their definitions, one seed one result, the best weights kept, resuming after a kill."""

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rankhoist.errors import TrainingError
from rankhoist.lab.data import RankingData, generate_request_log
from rankhoist.lab.train import (
    MODELS,
    Settings,
    auc,
    bayes_auc,
    bayes_log_loss,
    build_model,
    calibration,
    evaluate,
    log_loss,
    predict,
    train,
)
from rankhoist.nn import DCNv2

LIGHT = {"scale": 0.125}
DEMO = ("dcnv2", "deepfm")


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


def test_calibration_of_plain_cases():
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0])
    found = calibration(labels, torch.tensor([0.5, 0.9, 0.3, 0.9]), bins=2)
    assert [(part.rows, part.observed) for part in found.bins] == [(2, 0.0), (2, 1.0)]
    assert [part.predicted for part in found.bins] == pytest.approx([0.4, 0.9])
    assert found.error == pytest.approx((2 * 0.4 + 2 * 0.1) / 4) and found.ratio == pytest.approx(2.6 / 2)
    assert len(calibration(labels, labels, bins=10).bins) == 4
    assert math.isnan(calibration(torch.zeros(3), torch.rand(3)).ratio)


def test_true_probabilities_are_calibrated_and_distorted_ones_are_not(data):
    whole, truth = data.labels, data.true_probability
    right, wrong = calibration(whole, truth), calibration(whole, truth.square())
    assert right.error < 0.03 and abs(right.ratio - 1) < 0.05
    assert wrong.error > 0.1 and wrong.ratio < 0.8


@pytest.mark.parametrize("name", DEMO)
def test_training_learns_and_repeats(name, data):
    results, weights = [], []
    for _ in range(2):
        model = build_model(name, data, seed=1)
        results.append(train(model, data, Settings(batch_size=256, seed=1), progress=False))
        weights.append(model.state_dict())
    first, second = results
    assert first.test == second.test and first.curve == second.curve
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert 0.62 < first.test.auc < bayes_auc(data) + 0.01
    base = data.labels[data.train].mean()
    chance = log_loss(data.labels[data.test], torch.full((len(data.labels[data.test]),), float(base.logit())))
    assert bayes_log_loss(data) - 0.01 < first.test.log_loss < chance


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(DEMO)))
def test_every_model_learns(name, data):
    model = build_model(name, data, seed=1, **LIGHT)
    result = train(model, data, Settings(batch_size=128, learning_rate=1e-2, seed=1), progress=False)
    assert 0.6 < result.test.auc < bayes_auc(data) + 0.01


def test_rdcn_without_context_stream_is_rdcn_with_less(data):
    whole, fixed = (build_model(name, data, **LIGHT) for name in ("rdcn", "rdcn-fixed"))
    missing = set(whole.state_dict()) - set(fixed.state_dict())
    assert missing and all(name.startswith("cross.context_layers.") for name in missing)
    assert set(fixed.state_dict()) < set(whole.state_dict())


def test_seeds_differ_and_global_settings_stay(data):
    threads = torch.get_num_threads()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    models = [build_model("deepfm", data, seed=seed) for seed in (0, 0, 1)]
    train(models[0], data, Settings(epochs=1, batch_size=4096), progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert torch.equal(build_model("deepfm", data, seed=0).head.weight, models[1].head.weight)
    assert not torch.equal(models[1].head.weight, models[2].head.weight)


@pytest.mark.parametrize("evaluations", [1, 3])
def test_the_best_weights_are_kept_and_training_stops_early(data, evaluations):
    model = build_model("deepfm", data)
    # At this rate the model soon learns the training rows by heart.
    settings = Settings(epochs=12, batch_size=256, learning_rate=1e-2, evaluations=evaluations)
    result = train(model, data, settings, progress=False)
    last = result.curve[-1].epoch
    assert result.best_epoch < last < 12
    assert [point.epoch for point in result.curve] == pytest.approx(
        [(n + 1) / evaluations for n in range(len(result.curve))], abs=0.06
    )
    best = min(result.curve, key=lambda point: point.validation_loss)
    assert (best.epoch, best.validation_loss) == (result.best_epoch, result.validation.log_loss)
    logits = predict(model, data, data.validation)
    assert not model.training
    assert evaluate(data.labels[data.validation], logits) == result.validation


def test_patience_waits(data):
    settings = Settings(epochs=12, batch_size=256, learning_rate=1e-2, patience=3)
    result = train(build_model("deepfm", data), data, settings, progress=False)
    assert result.curve[-1].epoch == result.best_epoch + 3


def test_progress_is_quiet_where_there_is_no_terminal(data, capfd):
    train(build_model("deepfm", data), data, Settings(epochs=1, batch_size=4096), progress=True)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


# --------------------------------------------------------------------------------------------------
# Resuming
# --------------------------------------------------------------------------------------------------

SETTINGS = Settings(epochs=2, batch_size=32, evaluations=4, patience=99, seed=3)
KILLED = """
from pathlib import Path
from test_train import SETTINGS, resumable, small
from rankhoist.lab.train import train
train(resumable(small()), small(), SETTINGS, progress=False, checkpoint=Path("run.pt"), save_every=0.0)
"""


def small() -> RankingData:
    return generate_request_log(3000, seed=0, items=50, users=10)


def resumable(data: RankingData) -> torch.nn.Module:
    """With dropout, so that the state of torch's generator matters, and batch norm, whose buffers are no parameters."""
    model = build_model("dcnv2", data, seed=3, **LIGHT)
    assert isinstance(model, DCNv2)
    torch.manual_seed(3)
    return DCNv2(model.embedding.fields, hidden=(16,), dropout=0.3)


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = [str(Path(__file__).parent), *filter(None, sys.path)]
    code = f"import sys; sys.path[:0] = {path!r}{KILLED}"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    file, deadline = tmp_path / "run.pt", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and _step(file) < 30:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    step, last = _step(file), 2 * -(-small().train.stop // SETTINGS.batch_size)
    assert 30 <= step < last

    data, torch_state = small(), torch.get_rng_state()
    never_killed, killed = resumable(data), resumable(data)
    expected = train(never_killed, data, SETTINGS, progress=False)
    result = train(killed, data, SETTINGS, progress=False, checkpoint=file)
    assert result.curve == expected.curve and result.test == expected.test
    for name, value in never_killed.state_dict().items():
        assert torch.equal(value, killed.state_dict()[name]), name
    torch.set_rng_state(torch_state)


def _step(file: Path) -> int:
    return torch.load(file, weights_only=True)["state"]["step"] if file.exists() else 0


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path):
    file = tmp_path / "run.pt"
    settings = Settings(epochs=1, batch_size=2048)
    train(build_model("deepfm", data, **LIGHT), data, settings, progress=False, checkpoint=file, save_every=0.0)
    for model, other, difference in (
        (build_model("deepfm", data, **LIGHT), Settings(epochs=2, batch_size=2048), "settings epochs: it has 1"),
        (build_model("deepfm", data, scale=0.25), settings, "weights "),
    ):
        with pytest.raises(TrainingError, match=rf"of another run .{difference}.*remove it to start anew"):
            train(model, data, other, progress=False, checkpoint=file)
    with pytest.raises(TrainingError, match=r"data source: it has request log, seed 0, this one .*third 1"):
        third = generate_request_log(6000, seed=0, items=100, users=20, third=1.0)
        train(build_model("deepfm", third, **LIGHT), third, settings, progress=False, checkpoint=file)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match="not a checkpoint"):
        train(build_model("deepfm", data, **LIGHT), data, settings, progress=False, checkpoint=file)


def test_a_checkpoint_runs_no_code(data, tmp_path):
    file, trap = tmp_path / "run.pt", tmp_path / "trap"

    class Trap:
        def __reduce__(self):
            return trap.write_text, ("sprung",)

    torch.save({"format": 1, "identity": {}, "state": Trap()}, file)
    with pytest.raises(TrainingError, match="not a checkpoint"):
        train(build_model("deepfm", data, **LIGHT), data, Settings(), progress=False, checkpoint=file)
    assert not trap.exists()


# --------------------------------------------------------------------------------------------------
# Models
# --------------------------------------------------------------------------------------------------


def test_models_are_real_sized(data):
    sides = {}
    for name in DEMO:
        embedding = build_model(name, data).embedding
        context = sum(
            w for field, w in zip(embedding.fields, embedding.widths, strict=True) if field.name in data.context
        )
        sides[name] = (context, embedding.width - context)
    assert sides == {"dcnv2": (416, 152), "deepfm": (360, 160)}


def test_an_unknown_model_is_named(data):
    with pytest.raises(ValueError, match="no model named 'din'; choose from dcnv2, rdcn, rdcn-fixed, deepfm"):
        build_model("din", data)


@pytest.mark.parametrize("name", MODELS)
def test_trained_models_export_with_a_free_row_count(name, data):
    model = build_model(name, data, **LIGHT).eval()
    example = data.example(8)
    rows = torch.export.Dim("rows", min=2, max=1 << 20)
    shapes = ({key: {0: rows} for key in example},)
    exported = torch.export.export(model, (example,), dynamic_shapes=shapes).module()
    row = data.draw_row()
    request = data.request(row, data.choices(row)).rows()
    assert len(request["movie_id"]) > 2
    torch.testing.assert_close(exported(request), model(request))
