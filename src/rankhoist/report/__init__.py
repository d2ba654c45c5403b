"""Report: what a plan does with every captured operator.

* `record` is the report as plain data, with its totals, which files keep;
* `tables`, `svg` and `page` turn a record into text, a picture and a page;
* `report` is the record with these as methods, which users hold;
* `make` makes it of a plan: only this needs the planner;
* `certificate` is what `rankhoist.verify` found, which files keep and the page shows.
"""

from rankhoist.report.record import Amount, Module, Operator
from rankhoist.report.report import Report

__all__ = ["Amount", "Module", "Operator", "Report"]
