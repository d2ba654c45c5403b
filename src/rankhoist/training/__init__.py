"""Training on grouped batches: one row of context per request, forward and backward."""

from rankhoist.training.build import grouped
from rankhoist.training.gradients import verify_gradients
from rankhoist.training.model import GroupedModel

__all__ = ["GroupedModel", "grouped", "verify_gradients"]
