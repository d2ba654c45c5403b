"""`rankhoist serve`: saved models behind HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankhoist.cli.arguments import DONE, command
from rankhoist.errors import CommandError, ExtraError

EXAMPLES = """\
examples:
  rankhoist serve ranker.rankhoist
  rankhoist serve ranker.rankhoist --workers 4 --host 0.0.0.0 --port 8080
  rankhoist serve clicks.rankhoist sales.rankhoist --name clicks sales
  rankhoist serve ranker.rankhoist --catalogue items.parquet --item-id sku   # requests name items by their ids
  rankhoist serve versions/ --name ranker                 # the last artifact of a folder; kill -HUP loads a newer one
  RANKHOIST_MAX_QUEUE=200 rankhoist serve --config serve.toml

ask it:
  curl -d '{"context": {"user": 7}, "candidates": {"item": [3, 5]}}' localhost:8000/v1/models/ranker/rank
  curl localhost:8000/v2/models/ranker                    # names, dtypes and shapes of its features
  a browser at http://localhost:8000                      # a form that ranks an example

Every option is also an environment variable (RANKHOIST_PORT) and a line of the settings file (port = 8080)."""
MISSING = "rankhoist serve needs packages that are not installed: pip install 'rankhoist[serve]'"


def add(commands: Any) -> None:
    text = "serve saved models over HTTP"
    parser = command(commands, "serve", _serve, text, EXAMPLES)
    parser.add_argument("artifacts", metavar="ARTIFACT", nargs="*", help="a file that hoist --out wrote, or a folder")
    parser.add_argument(
        "--name", metavar="NAME", nargs="+", default=[], help="of each artifact (default: its file name)"
    )
    parser.add_argument(
        "--catalogue", metavar="ITEMS", nargs="+", default=[],
        help="items of the model: Parquet files, or a folder that HoistedModel.catalogue wrote; NAME=ITEMS of several",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="settings in TOML")
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting; values are checked by the settings' own schema."""
    try:
        from rankhoist.serve.config import Settings
    except ModuleNotFoundError:
        parser.set_defaults(without_extra=True)  # the command says so when it is used
        parser.epilog = (
            f"{parser.epilog}\n\nIts options are shown where the extra is installed: pip install 'rankhoist[serve]'"
        )
        return
    for name, field in Settings.model_fields.items():
        if name in ("models", "catalogues"):
            continue
        flag, default = f"--{name.replace('_', '-')}", "" if field.default is None else f" (default: {field.default})"
        kind: dict[str, Any] = {"metavar": name.split("_")[-1].upper()}
        if field.annotation is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(flag, default=argparse.SUPPRESS, help=f"{field.description}{default}", **kind)


def _serve(args: argparse.Namespace) -> int:
    try:
        from rankhoist.serve.config import Settings, settings_of
        from rankhoist.serve.supervisor import serve
    except ModuleNotFoundError as error:
        raise ExtraError(f"{MISSING} ({error.name} is missing)") from error
    flags = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    if models := _models(args.artifacts, args.name):
        flags["models"] = models
    if args.catalogue:
        flags["catalogues"] = _catalogues(args.catalogue, models)
    serve(settings_of(flags, args.config))
    return DONE


def _catalogues(given: list[str], models: dict[str, str]) -> dict[str, str]:
    """Name of a model -> its items; the name may be left out where there is one model."""
    found = {}
    for text in given:
        name, named, items = text.partition("=")
        if not named and len(models) != 1:
            raise CommandError(f"--catalogue {text}: there are {len(models)} models; say of which: NAME={text}")
        found[name if named else next(iter(models))] = items if named else text
    return found


def _models(artifacts: list[str], names: list[str]) -> dict[str, str]:
    """Name -> artifact."""
    names = names or [Path(path).name.removesuffix(".rankhoist") for path in artifacts]
    if len(names) != len(artifacts):
        raise CommandError(f"{len(artifacts)} artifacts and {len(names)} names; give --name one for each artifact")
    if len(set(names)) != len(names):
        raise CommandError(f"two artifacts have one name ({', '.join(names)}); tell them apart by --name")
    return dict(zip(names, artifacts, strict=True))
