"""Emit: the intermediate graph becomes three plain torch.fx graphs, one per stage."""

from rankhoist.emit.stages import Stages, emit

__all__ = ["Stages", "emit"]
