"""Emit: the intermediate graph becomes three plain torch.fx graphs, one per stage."""

from rankhoist.compiler.emit.stages import Catalogue, Stage, Stages, Variant, emit

__all__ = ["Catalogue", "Stage", "Stages", "Variant", "emit"]
