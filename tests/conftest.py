"""What every test starts from: no network, and a machine profile that is the same everywhere."""

import contextlib
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# deepctr_torch, when imported, asks for updates by `requests`, in a thread; without `get` it cannot.
with contextlib.suppress(ModuleNotFoundError):  # the quick tests need neither
    import requests

    del requests.get

# Plans follow predicted time. On real machines small models are not worth hoisting, and plans differ between machines;
# on this one calls are free, and every multiply-add and every element written costs the same.
os.environ["RANKHOIST_PROFILE"] = str(Path(__file__).with_name("profile.json"))

# A captured graph is thousands of objects in cycles: an eighth of the tests' time went into looking for garbage.
gc.set_threshold(5000, 10, 10)

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # a root user has none
        yield opened
        opened.close()
