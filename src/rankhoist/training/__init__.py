"""Training on grouped batches: one row of context per request, forward and backward."""

from rankhoist.training.build import grouped
from rankhoist.training.gradients import verify_gradients
from rankhoist.training.impressions import Batch, ImpressionLog, Request, RequestBatches
from rankhoist.training.model import GroupedModel

__all__ = ["Batch", "GroupedModel", "ImpressionLog", "Request", "RequestBatches", "grouped", "verify_gradients"]
