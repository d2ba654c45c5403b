"""Runtime: the hoisted model that callers hold, the file that it is saved to, and runners of what it exports."""

from rankhoist.runtime.aoti import load_package
from rankhoist.runtime.artifact import load
from rankhoist.runtime.deploy import Runner
from rankhoist.runtime.hoisted import HoistedModel, RequestState
from rankhoist.runtime.onnx import load_onnx

__all__ = ["HoistedModel", "RequestState", "Runner", "load", "load_onnx", "load_package"]
