"""Runtime: the hoisted model that callers hold, and runners of what it exports."""

from rankhoist.runtime.aoti import load_package
from rankhoist.runtime.deploy import Runner
from rankhoist.runtime.hoisted import HoistedModel, RequestState
from rankhoist.runtime.onnx import load_onnx

__all__ = ["HoistedModel", "RequestState", "Runner", "load_onnx", "load_package"]
