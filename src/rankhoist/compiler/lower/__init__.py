"""Fewer operators for the same values, and memory that is written over: the last steps before a graph is emitted."""
