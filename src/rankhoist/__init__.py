"""rankhoist: loop-invariant code motion for ranking models."""

from rankhoist.capture import Jagged, Split
from rankhoist.compiler.algebra.workload import Workload
from rankhoist.errors import ArtifactError, RankhoistError
from rankhoist.hoist import hoist
from rankhoist.report import Report
from rankhoist.runtime import HoistedModel, RequestState, Store, load
from rankhoist.training import GroupedModel, grouped, verify_gradients
from rankhoist.verify import Certificate, verify

__version__ = "0.1.0"
__all__ = [
    "ArtifactError",
    "Certificate",
    "GroupedModel",
    "HoistedModel",
    "Jagged",
    "RankhoistError",
    "Report",
    "RequestState",
    "Split",
    "Store",
    "Workload",
    "grouped",
    "hoist",
    "load",
    "verify",
    "verify_gradients",
]
