"""Runtime: the hoisted model that callers hold."""

from rankhoist.runtime.hoisted import HoistedModel, RequestState

__all__ = ["HoistedModel", "RequestState"]
