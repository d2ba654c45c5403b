"""What a picture shows: the graph folded into a few boxes by module, each of which opens as a picture of its own.

Operators stand in the order in which they run, so what a module's call makes is a run of neighbours, and boxes of
neighbours never read each other in a circle. Boxes that are alike and as far from the inputs as each other (118
embeddings) are one. A picture opens the modules with the most work, as long as it stays small; a module without inner
modules and with very many operators is cut into parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rankhoist.report.record import Amount, Operator, Record, Vertex

BOXES = 30  # of one picture
ALIKE = 3  # so many boxes that are alike are shown as one


@dataclass(frozen=True)
class Group:
    """Neighbours in the order of the program: one vertex, or a call of a module; `parts` are what is inside it.

    `title` names a part of a module that is none itself.
    """

    path: str
    vertices: tuple[int, ...]
    parts: tuple[Group, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Box:
    """One box of a picture: a group, or several that are alike."""

    groups: tuple[Group, ...]
    rate: str
    title: str
    path: str
    reads: tuple[int, ...]  # numbers of boxes of the same picture
    outside: bool = False  # not of the group that the picture is of

    @property
    def vertices(self) -> tuple[int, ...]:
        return tuple(v for group in self.groups for v in group.vertices)

    @property
    def opens(self) -> Group | None:
        """What a click opens, if anything is inside."""
        return self.groups[0] if len(self.groups) == 1 and self.groups[0].parts else None


@dataclass(frozen=True)
class Subject:
    """What pictures are drawn of: the vertices of a report, their rates, and the work of those that have some."""

    report: Record
    vertices: tuple[Vertex, ...]
    work: dict[str, Operator]
    rates: tuple[frozenset[str], ...]

    @staticmethod
    def of(report: Record) -> Subject:
        """Of a report; without vertices where it holds no graph."""
        work = {o.name: o for o in report.operators}
        vertices = report.graph.vertices if report.graph is not None else ()
        return Subject(report, vertices, work, _rates(vertices, work))

    def operator(self, number: int) -> Operator | None:
        """The work of a vertex; inputs have none."""
        vertex = self.vertices[number]
        return None if vertex.kind == "input" else self.work.get(vertex.name)

    def amounts(self, numbers: Iterable[int]) -> tuple[Amount, Amount, Amount]:
        """Of vertices in one call: before; after, per request and per candidate."""
        found = [o for n in numbers if (o := self.operator(n)) is not None]
        r, n = self.report.workload.requests, self.report.workload.candidates
        return (
            total((o.before for o in found), n), total((o.request for o in found), r),
            total((o.candidate for o in found), n),
        )  # fmt: skip

    def rate(self, numbers: Iterable[int]) -> str:
        """`weight`, `request`, `item`, `pair`, or `split`: what has parts, or work, of a request and of candidates."""
        found = set().union(*(self.rates[number] for number in numbers))
        if found & {"item", "pair"}:
            return "split" if "request" in found else "pair" if "pair" in found else "item"
        return "request" if "request" in found else "weight"


def _rates(vertices: Sequence[Vertex], work: dict[str, Operator]) -> tuple[frozenset[str], ...]:
    """Of every vertex: those of its result and of its work; what is passed on without work is what it reads."""
    rates: list[frozenset[str]] = []
    for vertex in vertices:
        own = work.get(vertex.name) if vertex.kind != "input" else None
        found = {*vertex.rates} - ({"weight"} if len(vertex.rates) > 1 else set())
        if own is not None and own.request:
            found.add("request")
        if own is not None and own.candidate and not found & {"item", "pair"}:
            found.add("pair")
        if vertex.choice == "pushed" and not (own and (own.request or own.candidate)):
            found = found.union(*(rates[r] for r in vertex.reads))
        rates.append(frozenset(found))
    return tuple(rates)


def total(amounts: Iterable[Amount], times: int) -> Amount:
    """The sum, so many times."""
    madds, written = 0, 0
    for amount in amounts:
        madds += amount.multiply_adds
        written += amount.bytes
    return Amount(madds * times, written * times)


# -- groups


def whole(subject: Subject) -> Group:
    """All vertices, grouped by the calls of modules."""
    paths = [v.module.split(".") if v.module else [] for v in subject.vertices]
    return _grouped("", range(len(paths)), paths, 0)


def _grouped(path: str, numbers: Sequence[int], paths: Sequence[list[str]], depth: int) -> Group:
    parts: list[Group] = []
    start = 0
    while start < len(numbers):
        own = paths[numbers[start]]
        end = start + 1
        if len(own) <= depth:
            parts.append(Group(path, (numbers[start],)))
        else:
            while end < len(numbers) and paths[numbers[end]][depth : depth + 1] == own[depth : depth + 1]:
                end += 1
            parts.append(_grouped(".".join(own[: depth + 1]), numbers[start:end], paths, depth + 1))
        start = end
    return parts[0] if len(parts) == 1 else Group(path, tuple(numbers), tuple(parts))


def shown(subject: Subject, group: Group) -> list[Box]:
    """The boxes of a group's picture, in the order of the program."""
    cut = list(group.parts) or [group]
    boxes = _boxes(subject, cut)
    if len(boxes) > BOXES:
        cut = _parts(subject, cut)
        boxes = _boxes(subject, cut)
    closed: set[tuple[int, ...]] = set()
    while True:
        inner = [box for box in boxes if any(g.parts for g in box.groups) and box.vertices not in closed]
        if not inner:
            return boxes
        most = max(inner, key=lambda box: _weight(subject, box))
        opened = [part for g in cut for part in (g.parts if g in most.groups and g.parts else (g,))]
        more = _boxes(subject, opened)
        if len(more) <= BOXES:
            cut, boxes = opened, more
        else:
            closed.add(most.vertices)


def with_sources(subject: Subject, group: Group) -> list[Box]:
    """The boxes of a group's picture, behind one box per rate for what the group reads from outside."""
    boxes, own = shown(subject, group), set(group.vertices)
    read = [{r for v in box.vertices for r in subject.vertices[v].reads} - own for box in boxes]
    by_rate: dict[str, list[int]] = {}
    for number in sorted(set().union(*read)):
        by_rate.setdefault(subject.rate([number]), []).append(number)
    sources = [_source(subject, rate, numbers) for rate, numbers in by_rate.items()]
    shifted = []
    for box, numbers in zip(boxes, read, strict=True):
        given = [i for i, source in enumerate(sources) if numbers & set(source.vertices)]
        shifted.append(replace(box, reads=(*given, *(r + len(sources) for r in box.reads))))
    return [*sources, *shifted]


def _source(subject: Subject, rate: str, numbers: list[int]) -> Box:
    names = [subject.vertices[n].name for n in numbers]
    title = names[0] if len(names) == 1 else f"{len(names)} results"
    path = f"from outside: {', '.join(names)}" if len(names) > 1 else "from outside"
    return Box((Group("", tuple(numbers)),), rate, title, path, (), outside=True)


def _weight(subject: Subject, box: Box) -> tuple[int, int]:
    before, request, candidate = subject.amounts(box.vertices)
    return max(before.multiply_adds, (request + candidate).multiply_adds), before.bytes


def _parts(subject: Subject, cut: Sequence[Group]) -> list[Group]:
    """Neighbours put together, so that there are few; large modules, and inputs, stay by themselves."""
    limit = 2 * sum(len(g.vertices) for g in cut) // BOXES
    runs: list[list[Group]] = [[]]
    size = 0
    for group in cut:
        alone = subject.vertices[group.vertices[0]].kind == "input"
        if runs[-1] and (alone or size + len(group.vertices) > limit):
            runs.append([])
            size = 0
        runs[-1].append(group)
        size += limit if alone else len(group.vertices)
    return [_together(subject, tuple(run)) for run in runs]


def _together(subject: Subject, run: tuple[Group, ...]) -> Group:
    if len(run) == 1:
        return run[0]
    vertices = tuple(v for group in run for v in group.vertices)
    first, last = (subject.vertices[vertices[i]].name for i in (0, -1))
    return Group(run[0].path, vertices, run, f"{first} to {last}")


# -- boxes


def _boxes(subject: Subject, cut: Sequence[Group]) -> list[Box]:
    """Groups as boxes; groups that are alike, on the same step from the inputs, as one."""
    steps = _steps(subject, cut)
    folded: dict[tuple[int, object], list[Group]] = {}
    for group, step in zip(cut, steps, strict=True):
        folded.setdefault((step, _signature(subject, group)), []).append(group)
    together: list[tuple[int, tuple[Group, ...]]] = []
    for (step, _), same in folded.items():
        together += [(step, tuple(same))] if len(same) >= ALIKE else [(step, (g,)) for g in same]
    together.sort(key=lambda found: (found[0], found[1][0].vertices[0]))  # so that a box reads boxes before it
    sets = [groups for _, groups in together]
    reads = _reads(subject, sets)
    return [_box(subject, groups, own) for groups, own in zip(sets, reads, strict=True)]


def _reads(subject: Subject, sets: Sequence[tuple[Group, ...]]) -> list[tuple[int, ...]]:
    """Which sets of groups each reads, by number."""
    home = {v: i for i, groups in enumerate(sets) for g in groups for v in g.vertices}
    found = []
    for i, groups in enumerate(sets):
        read = {r for g in groups for v in g.vertices for r in subject.vertices[v].reads}
        found.append(tuple(sorted({home[r] for r in read if r in home} - {i})))
    return found


def _steps(subject: Subject, cut: Sequence[Group]) -> list[int]:
    """How many groups lie before each, on the longest way from the inputs."""
    steps: list[int] = []
    for own in _reads(subject, [(g,) for g in cut]):
        steps.append(1 + max((steps[r] for r in own), default=-1))
    return steps


def _signature(subject: Subject, group: Group) -> object:
    """Groups with the same one look alike: the same operators at the same rates."""
    vertices = [subject.vertices[v] for v in group.vertices]
    return tuple((v.kind, v.operator, v.rates) for v in vertices), subject.rate(group.vertices)


def _box(subject: Subject, groups: tuple[Group, ...], reads: tuple[int, ...]) -> Box:
    first, several = groups[0], len(groups) > 1
    vertex = subject.vertices[first.vertices[0]]
    rate = subject.rate(v for g in groups for v in g.vertices)
    paths = [g.path for g in groups]
    if first.parts:
        title = first.title or named(common(paths))
    elif vertex.kind == "operator":
        title = short_operator(vertex.operator)
    else:
        title = "input" if several else vertex.name
        paths = [subject.vertices[g.vertices[0]].name for g in groups] if several else [vertex.kind]
    return Box(groups, rate, f"{len(groups)} × {title}" if several else title, common(paths), reads)


def named(path: str) -> str:
    """The last word of a path, with the numbers behind it: `experts.shared.0` -> `shared.0`."""
    parts = path.removesuffix("*").strip(".").split(".")
    last = max((i for i, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[last:])


def common(names: Sequence[str]) -> str:
    """`["user_0", "user_1"]` -> `user_*`; names that begin differently are listed."""
    if len(set(names)) == 1:
        return names[0]
    low, high = min(names), max(names)  # what these begin with, all begin with
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    prefix = low[:same]
    return f"{prefix}*" if prefix else ", ".join(names)


def short_operator(operator: str) -> str:
    """`aten.linear.default` -> `linear`."""
    return operator.removeprefix("aten.").split(".")[0] if operator.startswith("aten.") else operator
