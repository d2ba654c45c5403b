"""The examples run from training to a real server, which gives the trained model's scores (they compare them)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rankhoist

REPOSITORY = Path(__file__).parents[1]
NO_UPDATES = "import sys, types; sys.modules['requests'] = types.ModuleType('requests')"  # see conftest.py


@pytest.mark.parametrize("name", ["rechub", "deepctr", "torchrec"])
def test_from_training_to_the_server(name: str, tmp_path: Path):
    if name == "torchrec":
        pytest.importorskip("torchrec", reason="torchrec 1.8.0 and fbgemm-gpu-cpu 1.8.0 are not installed")
    (tmp_path / "sitecustomize.py").write_text(NO_UPDATES)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(REPOSITORY / f"examples/{name}_to_server.py"), "--rows", "3000", "--serve"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    for said in ("AUC on later rows", "PASSED", "rankhoist serve runs/examples/", "the server ranks candidates"):
        assert said in done.stdout
    (artifact,) = (tmp_path / "runs" / "examples").glob("*.rankhoist")
    assert rankhoist.load(artifact).level == "full"
    request = json.loads(artifact.with_suffix(".json").read_text())
    assert {len(rows) for rows in request["candidates"].values()} == {5}


def test_lightning_trains_once_per_request(tmp_path: Path):
    pytest.importorskip("lightning", reason="lightning is not installed")
    command = [sys.executable, str(REPOSITORY / "examples/lightning_grouped.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len([line for line in said if line.startswith("PASSED")]) == 2  # the gradients, and the hoisted model
    before, after = next(re.findall(r"[\d.]+(?= before| after)", line) for line in said if line.startswith("loss"))
    assert float(after) < 0.5 * float(before)
