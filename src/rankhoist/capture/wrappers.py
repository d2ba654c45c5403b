"""Models inside of others: wrappers are taken off, quantised modules refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from rankhoist.errors import UnsupportedModelError

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
PREFIXES = ("_orig_mod.", "module.")
PACKED = "torch.ao.nn.quantized"


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that a wrapper calls: of `torch.compile`, `DataParallel` and the like."""
    while True:
        inside = getattr(model, "module" if isinstance(model, WRAPPERS) else "_orig_mod", None)
        if not isinstance(inside, nn.Module):
            return model
        model = inside


def under_own_names(state_dict: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """The state dict of a wrapper under the names that its model has: without `module.`, `_orig_mod.`."""
    wanted = list(names)
    while not all(name in state_dict for name in wanted):
        inside = {k.split(".", 1)[1]: v for k, v in state_dict.items() if k.startswith(PREFIXES)}
        if not inside:
            break
        state_dict = inside
    return state_dict


def check_packed(model: nn.Module) -> None:
    """Refuse int8 modules.

    Raises:
        UnsupportedModelError: a module keeps its weights packed for int8 kernels.
    """
    packed = [(name, type(m).__name__) for name, m in model.named_modules() if type(m).__module__.startswith(PACKED)]
    if packed:
        name, kind = packed[0]
        raise UnsupportedModelError(
            f"module {name!r} ({kind}) keeps its weights packed for int8 kernels, which torch.export does not take, "
            "and quantises what it reads by the range of all rows of a call, so that no row's score is its own. Hoist "
            "the model as it was before it was quantised."
        )
