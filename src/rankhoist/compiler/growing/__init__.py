"""Growing: what the request stage computes of a history that is longer by an event, from what it computed before."""

from rankhoist.compiler.growing.grow import Growing, Reads, make_growing, uniform_weights
from rankhoist.compiler.growing.known import RefusedError, Varies

__all__ = ["Growing", "Reads", "RefusedError", "Varies", "make_growing", "uniform_weights"]
