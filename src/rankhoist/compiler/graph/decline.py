"""What a rule, or the algebra under it, says instead of an answer."""

from __future__ import annotations


class Decline(Exception):  # noqa: N818 - it is an answer, not a mistake
    """A rule that does not apply says why; the next law is tried, and at last the operator itself, over all rows."""


class Elsewhere(Decline):
    """What an operator is given here is no near miss: it belongs to the next law, whose reason is told."""
