"""Runtime: the hoisted model that callers hold, the file that it is saved to, and runners of what it exports."""

from rankhoist.runtime.catalogue import Store
from rankhoist.runtime.hoisted import HoistedModel
from rankhoist.runtime.loading import load
from rankhoist.runtime.runner import Runner, load_onnx, load_package
from rankhoist.runtime.scoring import RequestState

__all__ = ["HoistedModel", "RequestState", "Runner", "Store", "load", "load_onnx", "load_package"]
