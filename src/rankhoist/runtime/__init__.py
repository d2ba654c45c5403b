"""Runtime: the hoisted model that callers hold, and the file that it is saved to."""

from rankhoist.runtime.artifact import load
from rankhoist.runtime.hoisted import HoistedModel, RequestState

__all__ = ["HoistedModel", "RequestState", "load"]
