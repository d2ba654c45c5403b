"""rankhoist: loop-invariant code motion for ranking models."""

from rankhoist.algebra.ir import Workload
from rankhoist.capture import Split
from rankhoist.errors import RankhoistError
from rankhoist.hoist import hoist
from rankhoist.runtime import HoistedModel, RequestState

__version__ = "0.1.0"
__all__ = ["HoistedModel", "RankhoistError", "RequestState", "Split", "Workload", "hoist"]
