"""The page at the server's root, in a browser: it ranks, shows how the server is doing, and asks nobody else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import serving
import torch
from serving import Served
from torch import nn

import rankhoist
from rankhoist.serve import page
from rankhoist.serve.model import ServedModel

# Without quotes: torch cannot export a model whose inputs have them in their names.
HOSTILE = "</textarea></script><script>document.title=1</script><img src=x onerror=document.title=1>\u202e&"
HTML = {"Accept": "text/html,*/*;q=0.8"}


class Wide(nn.Module):
    """A row of very many numbers."""

    def forward(self, user, item):
        return (user * item).sum(1)


class Named(nn.Module):
    """Its inputs come as a dict, so they may be called anything."""

    def forward(self, given):
        return {f"out {HOSTILE}": (given["user"] * given[HOSTILE]).sum(1)}


def hostile() -> rankhoist.HoistedModel:
    example = ({"user": torch.rand(3, 2), HOSTILE: torch.rand(3, 2)},)
    return rankhoist.hoist(Named().eval(), example, context=["user"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    serving.hoisted_ranker().save(folder / "ranker.rankhoist")
    hostile().save(folder / "hostile.rankhoist")
    with serving.serving(folder / "ranker.rankhoist", folder / "hostile.rankhoist") as served:
        yield served


# -- what is sent


def test_browsers_get_a_page_and_others_json(server: Served):
    shown = server.call("/", headers=HTML)
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert shown.headers["content-security-policy"].startswith(
        "default-src 'none'; base-uri 'none'; form-action 'none'"
    )
    assert shown.headers["x-content-type-options"] == "nosniff" and shown.headers["vary"] == "accept"
    assert set(server.call("/").json["models"]) == {"ranker", "hostile"}


def test_a_report_is_one_click_away(server: Served):
    report = server.call("/v1/models/ranker/report")
    assert report.headers["content-type"] == "text/html; charset=utf-8"
    assert b"<h1>" in report.body and report.body == server.call("/v1/models/ranker/report").body
    assert server.call("/v1/models/nobody/report").status == 404


def test_it_is_off_where_the_settings_say_so(tmp_path):
    serving.hoisted_packed().save(tmp_path / "packed.rankhoist")
    with serving.serving(tmp_path / "packed.rankhoist", "--no-page") as served:
        assert served.call("/", headers=HTML).headers["content-type"] == "application/json"
        assert served.call("/v1/models/packed/report").status == 404


def test_what_is_large_is_not_on_it():
    wide = rankhoist.hoist(Wide().eval(), (torch.rand(2, 9000), torch.rand(2, 9000)), context=["user"])
    model = ServedModel("wide", "1", wide)
    shown = page.page([model])
    assert len(shown) < 40_000 and b"openapi.json has it" in shown
    assert len(page.page([model] * 1000)) < 40_000 + 100 * 10_000 and b"and 900 more" in page.page([model] * 1000)


# -- in a browser


class Opened:
    """The page in a browser, and what went over the network or to the console."""

    def __init__(self, browser: Any, server: Served, width: int = 1300, **kwargs: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **kwargs)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.url = f"http://127.0.0.1:{server.port}/"
        self.page.goto(self.url)

    def model(self, name: str) -> Any:
        return self.page.locator(f'.model[data-model="{name}"]')

    def live(self, model: str, key: str) -> str:
        found: str = self.model(model).locator(f'[data-live="{key}"]').inner_text()
        return found

    def quiet(self) -> bool:
        """Whether nothing went wrong, and nobody but the server was asked."""
        return self.said == [] and all(url.startswith((self.url, "data:,")) for url in self.asked)


def until(condition: Any) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come true")


def test_a_click_ranks_the_example(browser: Any, server: Served):
    opened = Opened(browser, server)
    ranker = opened.model("ranker")
    request = json.loads(ranker.locator("textarea").input_value())
    expected = server.call("/v1/models/ranker/rank", request).json
    ranker.locator(".rank").click()
    ranker.locator(".answer tbody tr").first.wait_for()
    rows = [row.split("\t") for row in ranker.locator(".answer tbody tr").all_inner_texts()]
    assert [int(row[1]) for row in rows] == expected["order"]
    assert [float(row[2]) for row in rows] == [expected["scores"]["click"][i] for i in expected["order"]]
    assert "3 candidates in" in ranker.locator(".said").inner_text()
    ranker.locator("textarea").fill(json.dumps(request | {"top_k": 1, "output": "buy"}))
    ranker.locator(".rank").click()
    until(lambda: ranker.locator(".answer tbody tr").count() == 1)
    (best,) = ranker.locator(".answer tbody tr").all_inner_texts()
    assert int(best.split("\t")[1]) == int(np.argmax(expected["scores"]["buy"]))
    assert opened.quiet()


def test_a_refusal_is_shown(browser: Any, server: Served):
    opened = Opened(browser, server)
    ranker = opened.model("ranker")
    request = json.loads(ranker.locator("textarea").input_value())
    request["context"]["user"] = 10**6
    ranker.locator("textarea").fill(json.dumps(request))
    ranker.locator(".rank").click()
    until(lambda: "400 out_of_vocabulary" in ranker.locator(".said").inner_text())
    ranker.locator("textarea").fill("{")
    ranker.locator(".rank").click()
    until(lambda: "400 malformed" in ranker.locator(".said").inner_text())
    assert ranker.locator(".answer table").count() == 0


def test_live_numbers_are_those_of_the_metrics(browser: Any, server: Served):
    opened = Opened(browser, server)
    until(lambda: "1 worker ready" in opened.page.inner_text("#health"))
    before = int(opened.live("ranker", "scored-all"))
    request = json.loads(opened.model("ranker").locator("textarea").input_value()) | {"context_key": "page"}
    for _ in range(20):
        server.call("/v1/models/ranker/rank", request)
    until(lambda: opened.live("ranker", "scored-now") == "20")
    assert int(opened.live("ranker", "scored-all")) == before + 20
    assert opened.live("ranker", "reused-now") == "19 of 20" and opened.live("ranker", "held") != "0.0 kB"
    for key in ("p50-now", "p99-now", "p50-all"):
        assert 0 < float(opened.live("ranker", key).removesuffix(" ms")) < 2500
    assert opened.live("hostile", "p50-now") == "–"
    assert opened.model("ranker").locator(".version").inner_text() == server.call("/").json["models"]["ranker"]


def test_the_report_is_linked_and_plans_unfold(browser: Any, server: Served):
    opened = Opened(browser, server)
    ranker = opened.model("ranker")
    ranker.locator("summary").first.click()
    assert "from 0: " in ranker.locator("details").first.inner_text()
    ranker.locator(".report").click()
    assert opened.page.url.endswith("/v1/models/ranker/report") and opened.page.locator(".box").count() > 3
    assert opened.quiet()


def test_hostile_names_are_shown_and_not_run(browser: Any, server: Served):
    opened = Opened(browser, server)
    model = opened.model("hostile")
    model.locator(".rank").click()
    model.locator(".answer tbody tr").first.wait_for()
    for one in model.locator("summary").all():
        one.click()
    assert "<script>" in model.locator("details").nth(1).inner_text()
    assert "<script>" in model.locator("details").nth(2).inner_text()
    assert "<script>" in model.locator("textarea").input_value()
    assert opened.page.title() == "rankhoist: 2 ranking models served"
    assert opened.page.locator("img").count() == 0 and opened.quiet()


def test_the_policy_forbids_other_scripts_and_other_servers(browser: Any, server: Served):
    opened = Opened(browser, server)
    add = "t => { const s = document.createElement('script'); s.textContent = t; document.body.append(s); }"
    opened.page.evaluate(add, "document.title = 1")
    opened.page.evaluate("() => fetch('http://127.0.0.1:9/').catch(() => null)")
    assert opened.page.title() != "1" and len([s for s in opened.said if "Content Security Policy" in s]) >= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_does_not_overflow(browser: Any, server: Served, scheme: str):
    opened = Opened(browser, server, 400, color_scheme=scheme)
    opened.model("ranker").locator(".rank").click()
    opened.model("ranker").locator(".answer tbody tr").first.wait_for()
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 400
    colour = opened.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
