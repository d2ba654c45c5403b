"""Emit: the intermediate graph becomes three plain torch.fx graphs, one per stage."""

from rankhoist.compiler.emit.stages import Stage, Stages, Variant, emit

__all__ = ["Stage", "Stages", "Variant", "emit"]
