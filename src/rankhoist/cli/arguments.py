"""What commands share: how one is declared, numbers, the context, JSON results, exit codes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rankhoist.compiler.algebra.workload import MOST
from rankhoist.errors import CommandError

DONE, FAILED, UNUSABLE = 0, 1, 2
MOST_COLUMNS = 2**24

CONTEXT_HELP = """\
an input that belongs to the request, by name or glob; for a packed input [rows, columns] its context columns, as
NAME=0,2,5-9 (9 included); repeat for more inputs"""


ITEM_HELP = """\
an input that an item has wherever it is a candidate, in the same words: its work is done once per item, for a store of
items; what is neither belongs to the pair of both"""


JAGGED_HELP = """\
an input of values in bags, and the one that cuts them into rows, as VALUES=lengths:NAME or VALUES=offsets:NAME; repeat
for more; containers of torchrec need none"""


DYNAMIC_HELP = """\
an axis of a context input whose length varies from call to call, as that of a history, as NAME=AXIS, NAME=AXIS:LOW:HIGH
or NAME=AXIS:LENGTH, where LENGTH is a name that axes of the same length share; repeat for more"""


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, examples: str
) -> argparse.ArgumentParser:
    """A new command with its help: what it does, and examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser


def numbers(parser: argparse.ArgumentParser, *names: str) -> None:
    """Arguments that several commands share, with the same words."""
    known: dict[str, tuple[str, Callable[[str], int], int, str]] = {
        "candidates": ("N", count, 1000, "candidates per call"),
        "requests": ("R", count, 1, "requests per call, which share the candidates out among them"),
        "seed": ("SEED", seed, 0, "of everything random"),
    }
    for name in names:
        metavar, kind, default, text = known[name]
        parser.add_argument(
            f"--{name}", metavar=metavar, type=kind, default=default, help=f"{text} (default: %(default)s)"
        )


def count(text: str) -> int:
    """A number from 1 on, of things that a machine can hold."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    if number > MOST:
        raise argparse.ArgumentTypeError(f"{text} is more than {MOST}")
    return number


def seed(text: str) -> int:
    """A number from 0 on, as generators of random numbers take it."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not one of 0 to {2**63 - 1}")
    return number


def new_file(text: str) -> str:
    """The path of a file to write: one that cannot be is told before any work."""
    path = Path(text)
    if path.is_dir():
        raise CommandError(f"{text} cannot be written: it is a folder")
    if not path.absolute().parent.is_dir():
        raise CommandError(f"{text} cannot be written: there is no folder {path.parent}")
    return text


def context_of(arguments: Sequence[str], option: str = "--context") -> dict[str, bool | list[int]]:
    """`["user_*", "features=0,2,5-9"]` -> `{"user_*": True, "features": [0, 2, 5, 6, 7, 8, 9]}`."""
    context: dict[str, bool | list[int]] = {}
    for argument in arguments:
        name, equals, columns = argument.partition("=")
        if "," in name:
            raise CommandError(
                f"{option} {argument}: one name each, {' '.join(f'{option} {n}' for n in name.split(','))}"
            )
        context[name] = _columns(f"{option} {argument}", columns) if equals else True
    return context


def jagged_of(arguments: Sequence[str]) -> dict[str, dict[str, str]]:
    """`["clicks=offsets:starts", "tags=lengths:counts"]` -> `{"clicks": {"offsets": "starts"}, ...}`."""
    jagged: dict[str, dict[str, str]] = {}
    for argument in arguments:
        values, equals, bounds = argument.partition("=")
        kind, colon, name = bounds.partition(":")
        if not equals or not colon or kind not in ("lengths", "offsets"):
            raise CommandError(f"--jagged {argument}: write VALUES=lengths:NAME or VALUES=offsets:NAME")
        jagged[values] = {kind: name}
    return jagged


def dynamic_of(arguments: Sequence[str]) -> dict[str, dict[int, Any]]:
    """`["history=1:1:200", "mask=1:T"]` -> `{"history": {1: (1, 200)}, "mask": {1: "T"}}`."""
    dynamic: dict[str, dict[int, Any]] = {}
    for argument in arguments:
        name, equals, rest = argument.partition("=")
        axis, *said = rest.split(":")
        try:
            own: Any = tuple(map(int, said)) if len(said) == 2 else next(iter(said), None)
            dynamic.setdefault(name, {})[int(axis)] = own
        except ValueError:
            equals = ""
        if not equals or len(said) > 2 or "" in said or (len(said) == 1 and said[0].isdigit()):
            raise CommandError(f"--dynamic {argument}: write NAME=AXIS, NAME=AXIS:LOW:HIGH or NAME=AXIS:LENGTH")
    return dynamic


def _columns(given: str, text: str) -> list[int]:
    columns: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            own = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise CommandError(f"{given}: {part!r} is no column; write NAME=0,2,5-9") from None
        if not own:
            raise CommandError(f"{given}: {part!r} runs backwards; write NAME=0,2,5-9")
        if own[-1] > MOST_COLUMNS:
            raise CommandError(f"{given}: {part!r} is more than any input has")
        columns += own
    return columns


def write_json(path: str | None, data: dict[str, Any]) -> None:
    """The result of a command with --json."""
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--json {path}: {error.strerror or error}") from error
