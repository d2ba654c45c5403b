"""`make docs`: the pages become a site without a warning, and a reader's browser fetches nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import rankhoist
from rankhoist import errors, runtime

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
LOADED = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*?\b(?:src|href)=\"(?P<address>[^\"]+)\"")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command of the Makefile, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    recipe = (REPOSITORY / "Makefile").read_text().partition("\ndocs:")[2].splitlines()[1]
    options = recipe.partition("sphinx-build ")[2].partition(" docs ")[0].split()
    assert "-W" in options
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site_and_in_its_contents(site: Path):
    contents = (site / "index.html").read_text(encoding="utf-8")
    names = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert {name for name in names if f'<a class="reference internal" href="{name}.html">' not in contents} == set()


def test_nothing_is_loaded_from_elsewhere(site: Path):
    pages = list(site.glob("*.html"))
    loaded = {m["address"] for page in pages for m in LOADED.finditer(page.read_text(encoding="utf-8"))}
    assert any(address.endswith("furo.js") or "furo.js?" in address for address in loaded)
    assert [address for address in loaded if re.match(r"(https?:)?//", address)] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*", styles) == []


def test_every_public_name_is_documented(site: Path):
    page = (site / "api.html").read_text(encoding="utf-8")
    named = [f"rankhoist.{name}" for name in rankhoist.__all__]
    named += [f"rankhoist.runtime.{name}" for name in runtime.__all__ if name not in rankhoist.__all__]
    named += [f"rankhoist.errors.{name}" for name, value in vars(errors).items() if isinstance(value, type)]
    public = {f"rankhoist.errors.{name}": f"rankhoist.{name}" for name in rankhoist.__all__}
    missing = [name for name in named if f'id="{public.get(name, name)}"' not in page]
    assert missing == []
