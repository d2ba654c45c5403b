"""Report: what a plan does with every captured operator.

* `make.operators` attributes the plan's work to the operators of the captured graph;
* `record` adds it up, per module and in all;
* `text` lays it out for people;
* `certificate` is what `rankhoist.verify` found, which files keep and the page shows.
"""

from rankhoist.report.make.operators import Amount, Operator
from rankhoist.report.record import Module, Report, make_report

__all__ = ["Amount", "Module", "Operator", "Report", "make_report"]
