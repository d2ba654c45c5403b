"""What ONNX Runtime makes of a file: the truth about it, beside which the module that was read of it is held."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist.capture.alike import alike
from rankhoist.errors import CaptureError, ExtraError
from rankhoist.mistakes import first_line

ALIKE = 1e-3  # of the scale: what rounding in float32 stays far below, and a misread operator does not


class Session(nn.Module):
    """An ONNX file in ONNX Runtime, called like the model that is read of it, in the dtypes of the file only.

    Raises:
        CaptureError: ONNX Runtime does not take the file.
        ExtraError: the extra `onnx` is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise ExtraError("an ONNX file needs an extra: pip install 'rankhoist[onnx]'") from error
        options = runtime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CaptureError(f"ONNX Runtime does not take {path}: {first_line(error)[:300]}") from error
        self.eval()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """`{input: [rows, ...]} -> output`, or a dict of outputs where there are several."""
        feeds = {name: x.detach().cpu().numpy() for name, x in inputs.items()}
        made = self._session.run(None, feeds)
        results = {o.name: torch.from_numpy(x) for o, x in zip(self._session.get_outputs(), made, strict=True)}
        return results if len(results) > 1 else next(iter(results.values()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        return self  # it has no weights of its own that a copy could change


def check_alike(model: nn.Module, path: Path, example: Mapping[str, Tensor]) -> None:
    """Hold a model beside ONNX Runtime, on the example.

    Raises:
        CaptureError: they differ.
    """
    own, truth = pytree.tree_leaves(model(example)), pytree.tree_leaves(Session(path)(example))
    for x, y in zip(own, truth, strict=True):
        if not alike(x, y, ALIKE):
            raise CaptureError(
                f"{path} was read, but scores differ from ONNX Runtime's on the example; please report it with the file"
            )
