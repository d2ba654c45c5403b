"""ONNX files as models: `read` makes a PyTorch module of one, `Session` is what ONNX Runtime makes of it.

Both are called with a dict of the file's inputs by name, `{name: [rows, ...]}`. Only operators of a list are read, and
nothing of a file is run as code; a file with others is refused by their names.
"""

from rankhoist.capture.onnx.model import OnnxModel, read
from rankhoist.capture.onnx.session import Session, check_alike

SUFFIX = ".onnx"

__all__ = ["SUFFIX", "OnnxModel", "Session", "check_alike", "read"]
