"""The report that users hold: the record, and what can be made of it."""

from __future__ import annotations

import os
from typing import Any

from rankhoist.arguments import path_of, writing
from rankhoist.errors import ArtifactError
from rankhoist.report.certificate import Certificate
from rankhoist.report.notebook import of_report
from rankhoist.report.page import to_html
from rankhoist.report.plain import decoded
from rankhoist.report.record import Record
from rankhoist.report.svg import to_svg
from rankhoist.report.tables import to_text


class Report(Record):
    """What a plan does with every captured operator, for one workload; `str(report)` is a table.

    `graph` and `curves` are None in a file of an older version, and `laws` is empty.
    """

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Report:
        """The inverse of `to_dict`.

        Raises:
            ArtifactError: the data is none that `to_dict` makes.
        """
        report: Report = decoded(Report, data)
        if min(report.workload.candidates, report.workload.requests) < 1:
            raise ArtifactError(f"its report is for {report.workload}")
        for part in (report.graph, report.curves, report.tuning):
            if part is not None:
                part.check()
        return report

    def to_html(self, certificate: Certificate | None = None) -> str:
        """One page that needs nothing else: the picture of the graph, costs, tables, and the certificate if given."""
        return to_html(self, certificate)

    def to_svg(self) -> str:
        """The picture alone, for documents.

        Raises:
            ArtifactError: the report is of a file of an older version, which holds no graph.
        """
        return to_svg(self)

    def save_html(self, path: str | os.PathLike[str], certificate: Certificate | None = None) -> None:
        """`to_html` as a file.

        Raises:
            ArtifactError: it cannot be written.
        """
        _write(path, self.to_html(certificate))

    def save_svg(self, path: str | os.PathLike[str]) -> None:
        """`to_svg` as a file.

        Raises:
            ArtifactError: see `to_svg`; it cannot be written.
        """
        _write(path, self.to_svg())

    def _repr_html_(self) -> str:
        """In a notebook: the page, in a frame."""
        return of_report(self)

    def __str__(self) -> str:
        return to_text(self)


def _write(path: str | os.PathLike[str], text: str) -> None:
    with writing(file := path_of(path)):
        file.write_text(text, encoding="utf-8")
