"""Targets: what a machine needs for each operator, and what runs the stages there."""

from rankhoist.compiler.targets.cpu import CPU, this_machine
from rankhoist.compiler.targets.known import named, target_of, with_replays
from rankhoist.compiler.targets.target import ALIKE, Measured, Target

__all__ = ["ALIKE", "CPU", "Measured", "Target", "named", "target_of", "this_machine", "with_replays"]
