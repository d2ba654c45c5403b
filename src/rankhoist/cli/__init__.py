"""The command line: `rankhoist COMMAND`; one file here is one command (or a few that share their arguments).

Exit codes: 0 done (and verified), 1 a certificate failed, 2 the command cannot be carried out, 130 it was stopped.
"""

from __future__ import annotations

import argparse
import os
import sys

from rankhoist import __version__
from rankhoist.cli import (
    bench,
    calibrate,
    client,
    demo,
    export,
    hoist,
    loadtest,
    report,
    score,
    serve,
    show,
    train,
    tune,
    verify,
)
from rankhoist.cli.arguments import DONE, FAILED, UNUSABLE, context_of
from rankhoist.errors import RankhoistError

__all__ = ["DONE", "FAILED", "UNUSABLE", "context_of", "main"]

STOPPED = 130  # the exit code of a command that was interrupted
NO_MEMORY = "can't allocate memory"  # of PyTorch's allocator on a CPU

COMMANDS = (
    demo,
    hoist,
    verify,
    report,
    show,
    tune,
    train,
    serve,
    score,
    export,
    client,
    loadtest,
    calibrate,
    bench,
)  # in the order of --help


def main(argv: list[str] | None = None) -> int:
    """Carry out one command; returns the exit code."""
    commands = parser()
    try:
        args, unknown = commands.parse_known_args(argv)
        if unknown and not hasattr(args, "without_extra"):  # its options are unknown, and it says so itself
            commands.error(f"unrecognized arguments: {' '.join(unknown)}")
        code: int = args.command(args)
        sys.stdout.flush()
    except RankhoistError as error:
        print(f"rankhoist: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("rankhoist: stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # whoever reads the output has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    except OSError as error:  # of a file that nothing above speaks of: a full disk, a folder of somebody else's
        where = f"{error.filename}: " if error.filename else ""
        print(f"rankhoist: {where}{error.strerror or error}", file=sys.stderr)
        return UNUSABLE
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and NO_MEMORY not in str(error):
            raise
        print("rankhoist: there is not enough memory for it: ask for fewer candidates, or requests", file=sys.stderr)
        return UNUSABLE
    return code


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="rankhoist",
        description="Compile a trained PyTorch ranking model so that context work runs once per request.",
        epilog="Each command has examples: rankhoist hoist --help",
    )
    parser.add_argument("--version", action="version", version=f"rankhoist {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return parser
