"""Training of ranking models: the loop, metrics, checkpoints, models for a data set, runs of several seeds."""

from rankhoist.lab.train.loop import Settings, TrainResult, bayes_auc, bayes_log_loss, predict, train
from rankhoist.lab.train.metrics import Metrics, auc, calibration, evaluate, log_loss
from rankhoist.lab.train.models import MODELS, build_model

__all__ = [
    "MODELS",
    "Metrics",
    "Settings",
    "TrainResult",
    "auc",
    "bayes_auc",
    "bayes_log_loss",
    "build_model",
    "calibration",
    "evaluate",
    "log_loss",
    "predict",
    "train",
]
