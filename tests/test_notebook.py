"""What a notebook shows: the page of a report in a frame, a certificate as a table, a model in a sentence."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankhoist import HoistedModel, Report, hoist, load, verify
from rankhoist.report.summary import headline, summary


class Named(nn.Module):
    """Its layer is named as markup."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("<b>tower</b>", nn.Linear(12, 3))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self._modules["<b>tower</b>"](torch.cat([user, item], 1))  # type: ignore[misc]
        return scores.sum(1)


@pytest.fixture(scope="module")
def hoisted() -> HoistedModel:
    torch.manual_seed(0)
    return hoist(Named().eval(), (torch.randn(4, 8), torch.randn(4, 4)), context=["user"])


@pytest.fixture(scope="module")
def report(hoisted: HoistedModel) -> Report:
    return hoisted.report()


def test_a_report_is_its_page_in_a_frame(report: Report):
    shown = report._repr_html_()
    source = shown.partition('srcdoc="')[2].partition('"')[0]
    assert html.unescape(source) == report.to_html()
    assert shown.startswith("<iframe") and 'sandbox="allow-scripts"' in shown


def test_a_model_says_what_is_saved_and_which_plan_scores_what(hoisted: HoistedModel, report: Report):
    shown = html.unescape(hoisted._repr_html_())
    assert headline(summary(report)) in shown
    assert str(hoisted.plans) in shown


def test_a_certificate_is_a_table_of_its_checks():
    torch.manual_seed(0)
    model = Named().eval()
    certificate = verify(hoist(model, (torch.randn(4, 8), torch.randn(4, 4)), context=["user"]), model, trials=1)
    shown = certificate._repr_html_()
    assert certificate.passed and ">PASSED</b>" in shown
    assert all(html.escape(check.name, quote=False) in shown for check in certificate.checks)


def test_a_notebook_shows_them_side_by_side(browser: Any, tmp_path: Path, hoisted: HoistedModel, report: Report):
    """The frame draws the page, its script runs there, and names are text outside of it, too."""
    hoisted.save(tmp_path / "model.rankhoist")
    parts = [load(tmp_path / "model.rankhoist")._repr_html_(), report._repr_html_()]
    (tmp_path / "notebook.html").write_text(f"<title>notebook</title>{''.join(parts)}", encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "notebook.html").as_uri())
    frame = page.frame_locator("iframe")
    assert frame.locator("h1").inner_text() == headline(summary(report))
    frame.locator('[role="button"], [tabindex="0"]').first.wait_for()
    assert page.title() == "notebook" and page.locator("pre").inner_text() == str(hoisted.plans)
