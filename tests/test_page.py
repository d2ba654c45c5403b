"""The report as a page and as a picture: what is on it, what a click shows, and that names stay names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import CALL, ITEM, Ranker

import rankhoist
from rankhoist import ArtifactError, HoistedModel, Workload, cli, hoist, verify
from rankhoist.report import Report
from rankhoist.report.layout import WIDTH, laid_out
from rankhoist.report.outline import BOXES, Subject, common, named, shown, whole, with_sources
from rankhoist.report.record import Amount, Graph, Items, Kept, Operator, Vertex
from rankhoist.report.summary import headline, summary
from rankhoist.runtime import container

HOSTILE = (
    """</script><script>document.title = 'run'</script><img src=x onerror="document.title = 'run'">'"&\x1b[2J\u202e"""
)


@pytest.fixture(scope="module")
def hoisted() -> HoistedModel:
    torch.manual_seed(0)
    rows = (torch.arange(7), torch.randn(7, 5), torch.randn(7, ITEM))
    return hoist(Ranker().eval(), rows, context=["user", "dense"], workload=CALL)


@pytest.fixture(scope="module")
def report(hoisted: HoistedModel) -> Report:
    return hoisted.report()


def made_up(
    modules: list[str], reads: Callable[[int], list[int]], name: Callable[[int], str] = "op_{}".format
) -> Report:
    """A report of operators in these modules; operator i reads `reads(i)`, or the one before it."""
    inputs = [
        Vertex(name, "input", "", "", (rate,), ("N", "4"), "float32", (), (), "", "")
        for name, rate in (("user", "request"), ("item", "item"))
    ]
    vertices, operators = list(inputs), []
    for i, module in enumerate(modules):
        own = tuple(sorted({r % (i + 2) for r in reads(i)})) or (i + 1,)
        rate = "request" if i % 3 == 0 else "pair"
        each = [Amount(100, 40), Amount(10, 4), Amount(30 * (rate == "pair"), 4)]
        vertices.append(Vertex(name(i), "operator", "aten.mul.Tensor", module, (rate,), ("N", "4"), "float32", own, (), "", ""))  # fmt: skip # noqa: E501
        operators.append(Operator(name(i), "aten.mul.Tensor", module, (rate,), None, "because", *each))
    last = Vertex("output", "output", "", "", ("pair",), (), "", (len(vertices) - 1,), (), "", "")
    return Report("full", Workload(), tuple(operators), Graph((*vertices, last)))


# -- the graph


def test_the_graph_holds_inputs_operators_and_outputs(report: Report):
    assert report.graph is not None
    vertices = report.graph.vertices
    assert [(v.name, v.kind, v.rates) for v in vertices[:3]] == [
        ("user", "input", ("request",)),
        ("dense", "input", ("request",)),
        ("item", "input", ("item",)),
    ]
    assert [v.name for v in vertices if v.kind == "operator"] == [o.name for o in report.operators if o.operator]
    lookup = next(v for v in vertices if "embedding" in v.operator)
    assert (lookup.reads, lookup.shape, lookup.weights, lookup.rule) == (
        (0,),
        ("N", "6"),
        ("users.weight",),
        "embedding",
    )
    joined = vertices[next(v for v in vertices if "cat" in v.operator).reads[0]]
    assert joined.name == lookup.name and vertices[-1].kind == "output" and vertices[-1].reads


def test_pushed_and_materialised_are_what_the_plan_chose(hoisted: HoistedModel, report: Report):
    plan = hoisted.plan
    choices = {v.name: v.choice for v in report.graph.vertices if v.choice}
    for name, choice in choices.items():
        assert choice == ("materialised" if name in plan.evaluated else "pushed")
    assert {*choices} == plan.interpreter.choices != set()


def test_curves_are_the_costs_of_the_plans(hoisted: HoistedModel, report: Report):
    curves = report.curves
    at = curves.candidates.index(1000)
    assert curves.requests == CALL.requests
    assert curves.original.multiply_adds[at] == report.total().before.multiply_adds
    chosen = hoisted.plans.plans[hoisted.plans.ranges.choose(1000, CALL.requests)]
    if chosen is hoisted.plan:
        assert curves.chosen.multiply_adds[at] == chosen.cost.multiply_adds
        assert curves.chosen.milliseconds[at] == pytest.approx(1e3 * chosen.cost.seconds)
    assert curves.spans[0].first == 1 and curves.spans[-1].level == chosen.level.name.lower()


def test_data_survive_json(report: Report):
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_data_of_an_older_version_lack_graph_and_curves(report: Report):
    data = {k: v for k, v in report.to_dict().items() if k not in ("graph", "curves")}
    older = Report.from_dict(json.loads(json.dumps(data)))
    assert older.graph is None and older.operators == report.operators
    assert "save the model again" in older.to_html() and "linear" in older.to_html()
    with pytest.raises(ArtifactError, match="holds no graph"):
        older.to_svg()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["graph"]["vertices"][3].update(reads=[3]), "vertex 3 of its report's graph"),
        (lambda d: d["graph"]["vertices"][3].update(reads=[-1]), "-1 where a number of 0 or more"),
        (lambda d: d["graph"]["vertices"][3].update(reads="12"), "a str where list"),
        (lambda d: d["graph"]["vertices"][3].update(kind="script"), "vertex 3 of its report's graph"),
        (lambda d: d["graph"]["vertices"][3].update(rates=["hourly"]), "vertex 3 of its report's graph"),
        (lambda d: d["graph"]["vertices"][3].update(choice="no"), "vertex 3 of its report's graph"),
        (lambda d: d["graph"]["vertices"][3].pop("name"), "lacks 'name'"),
        (lambda d: d["graph"].update(vertices={}), "a dict where list"),
        (lambda d: d["curves"]["candidates"].reverse(), "the curves of its report"),
        (lambda d: d["curves"]["chosen"]["milliseconds"].pop(), "the curves of its report"),
        (lambda d: d["curves"]["chosen"].update(milliseconds=["nan"] * 39), "the curves of its report"),
        (lambda d: d["curves"]["chosen"]["milliseconds"].__setitem__(0, "fast"), "a str where a number"),
        (lambda d: d["curves"].update(spans=[]), "the curves of its report"),
        (lambda d: d["operators"][0].update(name=7), "a int where str"),
        (lambda d: d["operators"][0]["before"].update(multiply_adds=1.5), "a float where int"),
        (lambda d: d["workload"].update(candidates=0), "its report is for Workload"),
        (lambda d: d.pop("level"), "lacks 'level'"),
    ],
)
def test_data_that_are_no_report(report: Report, change: Callable[[Any], Any], message: str):
    data = json.loads(json.dumps(report.to_dict()))
    change(data)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        Report.from_dict(data)


# -- pictures


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_pictures_are_small_whole_and_in_order(data: st.DataObject):
    count = data.draw(st.integers(1, 100))
    module = st.sampled_from(["", "a", "a.0", "a.1", "a.1.x", "b", "b.0", "b.1", "b.2", "b.3"])
    modules = data.draw(st.lists(module, min_size=count, max_size=count))
    reads = data.draw(st.lists(st.lists(st.integers(0, 200), max_size=3), min_size=count, max_size=count))
    subject = Subject.of(made_up(modules, reads.__getitem__))
    waiting = [whole(subject)]
    while waiting:
        group = waiting.pop()
        boxes = shown(subject, group)
        assert sorted(v for box in boxes for v in box.vertices) == sorted(group.vertices)
        assert len(boxes) <= BOXES + 3
        assert all(r < i for i, box in enumerate(boxes) for r in box.reads)
        opened = [box.opens for box in boxes if box.opens is not None]
        assert all(len(g.vertices) < len(group.vertices) for g in opened)
        waiting += opened
        check_layout(boxes)
        check_sources(subject, group, boxes)


def check_layout(boxes: list[Any]) -> None:
    """No box over another, each in its lane, and every edge drawn downwards."""
    heights = [40.0] * len(boxes)
    layout = laid_out(boxes, heights)
    lanes = {lane.rate: lane for lane in layout.lanes}
    for i, (box, a) in enumerate(zip(boxes, layout.places, strict=True)):
        lane = lanes[box.rate]
        assert lane.x <= a.x and a.x + WIDTH <= lane.x + lane.width
        assert a.y >= 0 and a.y + a.height <= layout.height
        for b in layout.places[:i]:
            assert abs(a.x - b.x) >= WIDTH or abs(a.y - b.y) >= 40
    assert {(e.source, e.target) for e in layout.edges} == {(r, i) for i, box in enumerate(boxes) for r in box.reads}
    assert all(e.points[0][1] < e.points[-1][1] for e in layout.edges)


def check_sources(subject: Subject, group: Any, boxes: list[Any]) -> None:
    """What a picture's boxes read from outside has boxes before them, one per rate."""
    behind = with_sources(subject, group)
    sources = [box for box in behind if box.outside]
    assert [box.vertices for box in behind[len(sources) :]] == [box.vertices for box in boxes]
    assert len({box.rate for box in sources}) == len(sources)
    read = {r for v in group.vertices for r in subject.vertices[v].reads}
    assert {v for box in sources for v in box.vertices} == read - set(group.vertices)
    for number, box in enumerate(behind):
        own = {r for v in box.vertices for r in subject.vertices[v].reads}
        given = {i for i, other in enumerate(behind) if own & set(other.vertices) and i != number}
        assert box.outside or given == set(box.reads)


def test_boxes_that_are_alike_are_one():
    report = made_up([f"tables.user_{i}" for i in range(120)], lambda _: [0], lambda i: f"embedding_{3 * i}")
    subject = Subject.of(report)
    boxes = shown(subject, whole(subject))
    assert ("80 × mul", "tables.user_*") in [(box.title, box.path) for box in boxes]
    assert ("40 × mul", "tables.user_*") in [(box.title, box.path) for box in boxes]
    assert len(boxes) == 5


def test_a_box_of_several_comes_after_all_that_they_read():
    reads = [[0], [2], [0], [0], [4], [4]]  # of op_1, op_4 and op_5, which are one box, the last two read op_2
    subject = Subject.of(made_up([f"m_{i}" for i in range(6)], reads.__getitem__))
    boxes = shown(subject, whole(subject))
    assert "3 × mul" in [box.title for box in boxes]
    assert all(r < i for i, box in enumerate(boxes) for r in box.reads)


def test_names_of_boxes():
    assert named("experts.shared.0") == "shared.0" and named("cross") == "cross" and named("0.1") == "0.1"
    assert named("experts.towers.*") == "towers"
    assert common(["a.x", "a.x"]) == "a.x" and common(["user", "page"]) == "user, page"
    assert common(["user_1", "user_12"]) == "user_1*"


def test_the_svg_is_a_document(report: Report):
    root = ElementTree.fromstring(report.to_svg())
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "● request" in texts and "▲ item" in texts and "● user" in texts
    assert "prefers-color-scheme: dark" in next(root.iter("{http://www.w3.org/2000/svg}style")).text


# -- the page as text


class Tags(HTMLParser):
    """Start tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        self.text += data * (not self._raw)


def hostile() -> Report:
    return made_up([HOSTILE, f"{HOSTILE}.inner", "top"] * 5, lambda _: [], lambda i: f"{HOSTILE}{i}")


def test_the_headline_says_what_is_saved(report: Report):
    found = summary(report)
    assert found.before == report.total().before.multiply_adds
    assert found.after == report.total().after.multiply_adds
    left = 100 * (1 - found.candidate / found.before)
    said = headline(found).replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith("1,000 candidates of 4 requests: ") and f"; {int(left)} % of the work no longer" in said
    nothing = made_up([""], lambda _: [])
    nothing = Report("expand", nothing.workload, (), nothing.graph)
    assert "saves none" in headline(summary(nothing)) and "saves none" in nothing.to_html()


def test_the_page_needs_nothing_else(report: Report):
    page = Tags(report.to_html())
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert {"link", "img", "iframe", "object", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [a for _, a in page.tags for key in a if key in ("src", "href", "style") or key.startswith("on")]
    for words in ("once per request", "per candidate", "what blocks the rest", "No certificate", "Cost against"):
        assert words in page.text


@pytest.mark.parametrize("make", [Report.to_html, Report.to_svg])
def test_names_from_a_model_stay_text(make: Callable[[Report], str]):
    plain, made = Tags(make(made_up(["m", "m.inner", "top"] * 5, lambda _: []))), Tags(make(hostile()))
    assert [tag for tag, _ in made.tags].count("script") == [tag for tag, _ in plain.tags].count("script")
    assert "img" not in {tag for tag, _ in made.tags}
    assert not [key for _, a in made.tags for key in a if key.startswith("on")]
    assert "\x1b" not in make(hostile()) and "\u202e" not in make(hostile())


def test_the_certificate_is_on_the_page(hoisted: HoistedModel, report: Report):
    torch.manual_seed(0)
    certificate = verify(hoisted, Ranker().eval(), candidates=[3], requests=[1])  # other weights
    assert not certificate.passed
    text = Tags(report.to_html(certificate)).text
    assert "FAILED" in text and "float64" in text and certificate.versions["torch"] in text


# -- the command


@pytest.fixture
def saved(hoisted: HoistedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as loaded:
        loaded.setattr(hoisted, "certificate", {"passed": True})
        hoisted.save(tmp_path / "ranker.rankhoist")
    return tmp_path / "ranker.rankhoist"


def test_items_and_modules_that_are_kept_have_sections_where_there_are_some(report: Report):
    assert 'id="items"' not in report.to_html() and 'id="opaque"' not in report.to_html()
    kept = Kept("tower <b>", ("8", "16"), "float32", 512), Kept("price", (), "float64", 8)
    amounts = Amount(1, 2), Amount(70_000, 4), Amount(3_000, 6)
    page = replace(report, items=Items(1024, kept, *amounts, 0.25, 1.5), opaque=("towers.<i>",)).to_html()
    own = page[page.index('<section id="items">') : page.index('<section id="modules">')]
    for said in ("520 bytes of each item, of 1,024", "0.25 ms with it, and 1.5 ms without", "tower &lt;b&gt;", "8 × 16",
                 "1 value", "98", "70", "what remains", "towers.&lt;i&gt;", "rankhoist.verify tests it"):  # fmt: skip
        assert said in own, said


def test_a_saved_model_has_the_page_of_the_model(saved: Path, report: Report, hoisted: HoistedModel, capsys):
    assert rankhoist.load(saved).report() == report
    hoisted.save(saved)
    assert cli.main(["report", saved.name, "--html", "page.html", "--svg", "picture.svg"]) == 0
    assert Path("page.html").read_text(encoding="utf-8") == report.to_html()
    assert Path("picture.svg").read_text(encoding="utf-8") == report.to_svg()
    assert "still computed per candidate:" in capsys.readouterr().out


def test_a_model_gets_a_page_with_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    Path("its_models.py").write_text(
        "import torch\nfrom test_report import Ranker\n"
        "def ranker():\n    return Ranker().eval(), (torch.arange(7), torch.randn(7, 5), torch.randn(7, 3))\n"
    )
    command = ["report", "its_models:ranker", "--context", "user", "--context", "dense"]
    assert cli.main([*command, "--html", "page.html"]) == 0
    assert "PASSED" in Tags(Path("page.html").read_text(encoding="utf-8")).text
    assert cli.main([*command, "--html", "page.html", "--no-verify"]) == 0
    assert "No certificate" in Tags(Path("page.html").read_text(encoding="utf-8")).text
    assert cli.main([*command, "--no-verify", "--svg", "none/x.svg"]) == 2
    assert "none/x.svg cannot be written: there is no folder none" in capsys.readouterr().err
    assert cli.main(["report", "its_models:ranker"]) == 2
    assert "say with --context which inputs of its_models:ranker" in capsys.readouterr().err


def test_a_saved_model_is_hoisted_already(saved: Path, capsys):
    assert cli.main(["report", saved.name, "--context", "user"]) == 2
    assert "ranker.rankhoist is hoisted already" in capsys.readouterr().err
    assert cli.main(["report", saved.name]) == 2  # its certificate is none
    assert "the certificate in the file is none" in capsys.readouterr().err


def test_a_forged_graph_is_refused(saved: Path):
    with container.opened(saved) as file:
        contents = {name: file.read(name) for name in container.MEMBERS}
    model = json.loads(contents["model.json"])
    model["report"]["graph"]["vertices"][0]["reads"] = [10**9]
    container.write(saved, contents | {"model.json": container.to_json(model)})
    with pytest.raises(ArtifactError, match="vertex 0 of its report's graph"):
        rankhoist.load(saved)


# -- in a browser


class Opened:
    """A page in a browser, and what went over the network or to the console."""

    def __init__(self, browser: Any, folder: Path, report: Report, width: int = 1300, **kwargs: Any) -> None:
        report.save_html(folder / "page.html")
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **kwargs)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.url = (folder / "page.html").as_uri()
        self.page.goto(self.url)

    def quiet(self) -> bool:
        return self.asked == [self.url] and self.said == []

    def details(self) -> str:
        found: str = self.page.inner_text("#details")
        return found

    def box(self, said: str) -> Any:
        return self.page.locator(f'.sheet:not([hidden]) [aria-label^="{said}"]').first


def test_hover_focus_and_click_show_details(browser: Any, tmp_path: Path, report: Report):
    opened = Opened(browser, tmp_path, report)
    page = opened.page
    assert page.inner_text("h1").replace("\xa0", " ") == headline(summary(report)).replace("\xa0", " ")
    layer = next(v for v in report.graph.vertices if v.module == "user_tower.layer")
    opened.box("linear user_tower.layer").hover()
    details = opened.details()
    for words in (
        layer.name,
        "user_tower.layer",
        "aten.linear.default",
        "N × 8, float32",
        "once per request",
        "88 multiply-adds",
    ):
        assert words in details
    assert page.locator(".edges path.on").count() >= 2
    opened.box("embedding users").focus()
    assert "users.weight" in opened.details()
    opened.box("softmax").click()
    opened.box("embedding users").hover()
    assert "aten.softmax" in opened.details() and "why it stays" in opened.details()
    page.keyboard.press("Escape")
    opened.box("embedding users").focus()
    page.keyboard.press("Enter")
    assert page.locator(".box.kept").count() == 1 and "users.weight" in opened.details()
    page.locator("#blocking button.show").first.click()
    assert page.inner_text("#details h3").endswith(report.blocking()[0].name)
    assert opened.quiet()


def test_modules_open_and_close(browser: Any, tmp_path: Path):
    opened = Opened(browser, tmp_path, made_up([f"deep.{i}" for i in range(100)], lambda _: []))
    page = opened.page
    assert page.locator(".sheet:not([hidden])").count() == 1
    pile = page.locator(".sheet:not([hidden]) .box:has(.plus)").first
    pile.hover()
    assert "inside:" in opened.details()
    pile.click()
    assert page.locator("#trail button").count() == 2 and page.locator(".sheet:not([hidden])").count() == 1
    assert page.evaluate("document.activeElement.closest('.sheet:not([hidden])') !== null")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert page.locator("#trail button").count() == 1
    before = page.locator(".sheet:not([hidden]) .picture").bounding_box()["width"]
    page.click("#in")
    assert page.locator(".sheet:not([hidden]) .picture").bounding_box()["width"] > before
    page.locator("#blocking button.show").last.evaluate("button => button.click()")
    assert page.locator(".box.kept").count() == 1
    assert opened.quiet()


def test_hostile_names_are_shown_and_not_run(browser: Any, tmp_path: Path):
    opened = Opened(browser, tmp_path, hostile())
    for box in opened.page.locator(".sheet:not([hidden]) .box").all():
        box.focus()
    assert "<script>" in opened.page.inner_text("#blocking") or "<script>" in opened.details()
    assert opened.page.title().startswith("rankhoist: ") and opened.quiet()
    assert opened.page.locator("img").count() == 0


def test_the_policy_forbids_the_network_and_other_scripts(browser: Any, tmp_path: Path, report: Report):
    opened = Opened(browser, tmp_path, report)
    add = "t => { const s = document.createElement('script'); s.textContent = t; document.body.append(s); }"
    opened.page.evaluate(add, "document.title = 'run'")
    opened.page.evaluate(
        "() => { const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i); }"
    )
    opened.page.wait_for_timeout(100)
    assert opened.page.title() != "run" and len([s for s in opened.said if "Content Security Policy" in s]) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_does_not_overflow(browser: Any, tmp_path: Path, report: Report, scheme: str):
    opened = Opened(browser, tmp_path, report, 400, color_scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 400
    colour = opened.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
    opened.page.emulate_media(media="print")
    assert opened.page.locator(".zoom").is_hidden() and opened.page.locator(".sheet:not([hidden])").is_visible()
    assert opened.quiet()


def test_two_thousand_operators(browser: Any, tmp_path: Path):
    modules = [f"tower.{i // 10}.{i % 3}" for i in range(1200)] + [f"top.{i}" for i in range(400)] + [""] * 400
    opened = Opened(browser, tmp_path, made_up(modules, lambda i: [i + 1, 7 * i // 8]))
    page = opened.page
    assert page.locator(".sheet:not([hidden]) .box").count() <= BOXES + 3
    while page.locator(".sheet:not([hidden]) .box:has(.plus)").count():
        page.locator(".sheet:not([hidden]) .box:has(.plus)").last.focus()
        page.keyboard.press("Enter")
    page.locator(".sheet:not([hidden]) .box").last.focus()
    assert "operator" in opened.details() and opened.quiet()
