"""Capture: a model as its author wrote it becomes one functional ATen graph with one row symbol."""

from rankhoist.capture.inputs import Constant, Context, InputSpec, Split
from rankhoist.capture.interface import Interface
from rankhoist.capture.program import Program, capture

__all__ = ["Constant", "Context", "InputSpec", "Interface", "Program", "Split", "capture"]
