"""Plain text for people: aligned columns, short numbers, long names shortened in the middle."""

from __future__ import annotations

from collections.abc import Sequence

NAME_WIDTH = 30


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of aligned columns; the first `left` columns are words, the others numbers."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return ["  ".join(_aligned(row, widths, left)).rstrip() for row in (header, ["-" * w for w in widths], *rows)]


def _aligned(row: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    return [text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))]


def shorten(name: str, width: int = NAME_WIDTH) -> str:
    """At most `width` characters; the middle goes: `tower.layers.0.attention.query` -> `tower.lay..tion.query`."""
    if len(name) <= width:
        return name
    head = (width - 2) // 2
    return f"{name[:head]}..{name[len(name) - (width - 2 - head) :]}"


def short(number: int, zero: str = ".") -> str:
    """Three digits and a unit: 1234567 -> `1.23M`."""
    if number == 0:
        return zero
    size, unit = float(number), ""
    for next_unit in ("k", "M", "G", "T"):
        if size < 999.5:
            break
        size, unit = size / 1000, next_unit
    return f"{size:.3g}{unit}" if unit else str(number)


def ratio(before: int, after: int) -> str:
    """How many times less: `4.00x`; `all` where nothing is left, a dot where there was nothing."""
    if not before:
        return "."
    if not after:
        return "all"
    times = before / after
    return f"{times:.0f}x" if times >= 100 else f"{times:.2f}x"


def spelled(number: int, word: str) -> str:
    """`1 operator`, `1,200 operators`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def spaced(number: int) -> str:
    """As `short`, for a sentence: 1234567 -> `1.23 M`, with a space that does not break."""
    text = short(number, "0")
    return f"{text[:-1]}\N{NO-BREAK SPACE}{text[-1]}" if text[-1].isalpha() else text


def percent(part: float, whole: float) -> str:
    """Whole percents, rounded down, so that 100 means all: `94 %`."""
    share = 100 * part / whole if whole else 0.0
    return f"{int(share)}\N{NO-BREAK SPACE}%" if share >= 1 or not share else "under 1\N{NO-BREAK SPACE}%"
