"""Targets: what a machine needs for each operator, and what runs the stages there."""
