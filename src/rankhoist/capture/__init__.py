"""Capture: a model as its author wrote it becomes one functional ATen graph with one row symbol."""

from rankhoist.capture.bags import BagNames
from rankhoist.capture.inputs import Constant, Context, InputSpec, Split
from rankhoist.capture.interface import Interface
from rankhoist.capture.jagged import Jagged
from rankhoist.capture.opaque import OPAQUE, OpaqueCall
from rankhoist.capture.program import Model, Program, capture
from rankhoist.capture.varying import Dynamic, Varying

__all__ = [
    "OPAQUE", "BagNames", "Constant", "Context", "Dynamic", "InputSpec", "Interface", "Jagged", "Model", "OpaqueCall",
    "Program", "Split", "Varying", "capture",
]  # fmt: skip
