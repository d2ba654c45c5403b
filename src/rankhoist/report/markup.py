"""Elements of a page and of a picture. Names come from models and files: the serialiser escapes every one of them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from xml.etree import ElementTree

Element = ElementTree.Element


def tag(name: str, *inside: Element | str, **attributes: str | float | None) -> Element:
    """`tag("a", "text", class_="x", data_y=1)` -> `<a class="x" data-y="1">text</a>`; None leaves an attribute out."""
    made = Element(name)
    for key, value in attributes.items():
        if value is not None:
            made.set(key.rstrip("_").replace("_", "-"), f"{value:g}" if isinstance(value, float) else clean(str(value)))
    for item in inside:
        if isinstance(item, Element):
            made.append(item)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + clean(item)
        else:
            made.text = (made.text or "") + clean(item)
    return made


def table(header: Sequence[str], rows: Sequence[Sequence[Element | str]], words: int) -> Element:
    """The first `words` columns are words, the others numbers."""
    kinds = ["word" if i < words else "number" for i in range(len(header))]
    head = tag("tr", *(tag("th", text, scope="col", class_=kind) for text, kind in zip(header, kinds, strict=True)))
    body = [tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll", tabindex="0")


def clean(text: str) -> str:
    """Without characters that markup cannot hold, or that turn the direction of the text around them."""
    if text.isprintable():  # nearly always
        return text
    return "".join(c if c.isprintable() or c in "\n\N{NO-BREAK SPACE}" else "�" for c in text)


def html(*elements: Element) -> str:
    """As part of a page."""
    return "".join(ElementTree.tostring(e, encoding="unicode", method="html") for e in elements)


def xml(element: Element) -> str:
    """As a document of its own."""
    return ElementTree.tostring(element, encoding="unicode")


def source_hash(text: str) -> str:
    """How a policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
