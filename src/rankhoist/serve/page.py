"""The page for people at the server's root: what is served, how it is doing, and a form that ranks an example.

One page without a network: its policy allows its own style and script, and calls of this server. It reads and ranks, as
any client may; nothing on it changes what is served.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from itertools import groupby, islice
from string import Template
from weakref import WeakKeyDictionary

from rankhoist.report.certificate import Certificate
from rankhoist.report.markup import Element, html, source_hash, tag
from rankhoist.report.svg import part
from rankhoist.report.text import spelled
from rankhoist.runtime.versions import versions
from rankhoist.serve.example import rank_example
from rankhoist.serve.features import Feature
from rankhoist.serve.model import ServedModel

MODELS, FEATURES, OUTPUTS = 100, 50, 20  # that are shown
LONGEST = 2**16  # characters of an example that is shown
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
LIVE = {"scored": "scored requests", "refused": "refused", "p50": "p50", "p99": "p99", "reused": "states reused"}


def page(models: Sequence[ServedModel]) -> bytes:
    """The page."""
    style, script = _sources()
    title = f"{spelled(len(models), 'ranking model')} served"
    more = [tag("p", f"and {len(models) - MODELS} more")] if len(models) > MODELS else []
    shown = html(*map(_model, models[:MODELS]), *more)
    text = Template(_asset("page.html")).substitute(
        title=title, version=versions()["rankhoist"], style=style, script=script, models=shown
    )
    return text.encode()


def headers(policy: str) -> list[tuple[str, str]]:
    """Of a page, for HTTP."""
    return [
        ("content-type", "text/html; charset=utf-8"), ("content-security-policy", policy),
        ("cache-control", "no-cache"), ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"), ("vary", "accept"),
    ]  # fmt: skip


@cache
def policy() -> str:
    """What the page may do."""
    style, script = map(source_hash, _sources())
    return f"{NOTHING}; connect-src 'self'; img-src data:; style-src {style}; script-src {script}"


class Reports:
    """The report of each model as a page, made when it is first asked for, beside what the worker does."""

    policy = "frame-ancestors 'none'"  # the others are in the page itself

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[ServedModel, asyncio.Task[bytes]] = WeakKeyDictionary()

    async def of(self, model: ServedModel) -> bytes:
        """The page."""
        if model not in self._made:
            self._made[model] = asyncio.ensure_future(asyncio.to_thread(_report, model))
        return await asyncio.shield(self._made[model])


def _report(model: ServedModel) -> bytes:
    found = model.hoisted.certificate
    return model.hoisted.report().to_html(None if found is None else Certificate.from_dict(found)).encode()


# -- a model


def _model(model: ServedModel) -> Element:
    plan = model.hoisted.plans.main
    about = f", level {plan.asked.name.lower()}, {spelled(len(model.hoisted.plans.plans), 'plan')} · "
    return tag(
        "section",
        tag("h2", model.name),
        tag("p", "version ", tag("span", model.version, class_="version"), about, _link(model), class_="soft"),
        *_items(model),
        tag("div", tag("div", *_form(model)), tag("div", _live(), _plans(model), *_tensors(model)), class_="columns"),
        class_="model",
        data_model=model.name,
    )


def _items(model: ServedModel) -> Iterable[Element]:
    """What its catalogue is."""
    if model.items is not None:
        store, name = model.items.store, model.items.name
        about = f"{spelled(len(store), 'item')} in its catalogue, {store.bytes_per_item:,} bytes each, named by {name}"
        yield tag("p", about, class_="soft")


def _link(model: ServedModel) -> Element:
    return tag("a", "report: what runs how often, and why", href=f"v1/models/{model.name}/report", class_="report")


def _form(model: ServedModel) -> list[Element]:
    """The example to be changed and sent, if it can be ranked and shown."""
    example = rank_example(model)
    if example is None:
        return [tag("p", f"No output has one value per candidate to rank by: POST /v2/models/{model.name}/infer.")]
    text = _written(example)
    if len(text) > LONGEST:
        return [tag("p", "An example is too long for this page; openapi.json has it.")]
    return [
        tag("h3", "Rank an example"),
        tag("textarea", text, spellcheck="false", aria_label=f"a request to {model.name}"),
        tag("button", "Rank", type="button", class_="rank"),
        tag("p", class_="said", role="status"),
        tag("div", class_="answer"),
    ]


def _written(example: dict[str, object]) -> str:
    """JSON with a line for each feature."""
    parts = []
    for key, value in example.items():
        if isinstance(value, dict):
            lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(one)}" for name, one in value.items())
            parts.append(f"  {json.dumps(key)}: {{\n{lines}\n  }}")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}"


def _live() -> Element:
    rows: list[list[Element | str]] = [
        [words, *(tag("span", "–", data_live=f"{key}-{column}") for column in ("now", "all"))]
        for key, words in LIVE.items()
    ]
    rows.append(["states held", tag("span", "–", data_live="held"), ""])
    return _table(["", "last minute", "since the start"], rows)


def _plans(model: ServedModel) -> Element:
    """Which plan scores how many candidates, by the number of requests in a call."""
    plans, ranges = model.hoisted.plans.plans, model.hoisted.plans.ranges
    by_requests = groupby(zip(ranges.requests, ranges.candidates, strict=True), key=lambda pair: pair[1])
    rows = [
        [
            f"from {next(same)[0]}",
            ", ".join(f"from {first}: {plans[way.plan].level.name.lower()} ({way})" for first, way in row),
        ]
        for row, same in by_requests
    ]
    return _folded("Plans by candidates per call", _table(["requests per call", "candidates per call"], rows))


def _tensors(model: ServedModel) -> Iterable[Element]:
    features, outputs = model.signature.features.values(), model.outputs
    inputs = [[f.name, f.side, f.datatype, _row(f), _ids(f)] for f in islice(features, FEATURES)]
    if len(features) > FEATURES:
        inputs.append([f"and {len(features) - FEATURES} more", "", "", "", ""])
    yield _folded("Features", _table(["feature", "side", "dtype", "row", "ids"], inputs))
    made = [[o.name, o.datatype, _shape(["any" if n < 0 else str(n) for n in o.shape])] for o in outputs[:OUTPUTS]]
    yield _folded("Outputs", _table(["output", "dtype", "row"], made))


def _row(feature: Feature) -> str:
    if feature.jagged:
        return f"a bag of {_shape(feature.sizes)}" if feature.shape else "a bag of values"
    return _shape(feature.sizes)


def _shape(sizes: Sequence[str]) -> str:
    return " × ".join(sizes) or "1 value"


def _ids(feature: Feature) -> str:
    if feature.names_items:
        return "of the catalogue"
    if feature.bounds is None:
        return ""
    return f"0 to {feature.bounds - 1}" if isinstance(feature.bounds, int) else "differ by column"


# -- elements


def _table(header: Sequence[str], rows: Sequence[Sequence[Element | str]]) -> Element:
    head = tag("thead", tag("tr", *(tag("th", word) for word in header)))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("div", tag("table", head, body), class_="scroll")


def _folded(title: str, inside: Element) -> Element:
    return tag("details", tag("summary", title), inside)


@cache
def _sources() -> tuple[str, str]:
    """Its style, which begins with that of reports, and its script."""
    return part("picture.css") + part("page.css") + _asset("page.css"), _asset("page.js")


def _asset(name: str) -> str:
    return resources.files("rankhoist.serve").joinpath("assets").joinpath(name).read_text(encoding="utf-8")
