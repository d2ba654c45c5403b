"""Plans for calls whose items have a store, beside those for calls without one."""

from __future__ import annotations

import os
from dataclasses import replace

from rankhoist.arguments import whole_number
from rankhoist.compiler.plan.plan import Plan
from rankhoist.compiler.plan.plans import Plans
from rankhoist.compiler.plan.ranges import make_plans
from rankhoist.errors import ContextError

ITEMS, SHARE = 1_000_000, 4  # a store of so many items may take one part in so many of the memory


def plans_with_store(plans: Plans[Plan], item_bytes: int | None = None) -> Plans[Plan] | None:
    """Plans that read what depends on items alone from a store, of the workload, the level and the laws of `plans`.

    They share the weights stage with those, and are looked for near them: a store saves work, but what is best without
    one is good with one, and a search may not come there. None where no input is marked as the item's.

    Raises:
        ContextError: `item_bytes` is no number of bytes.
    """
    main = plans.main
    if not any(spec.item or spec.item_columns for spec in main.task.program.inputs.values()):
        return None
    room = of_memory() if item_bytes is None else whole_number(item_bytes, "item_bytes")
    if room < 1:
        raise ContextError(f"item_bytes is {room}: a store keeps one byte of an item at least")
    task = replace(main.task, level=main.asked, workload=replace(main.workload, item_bytes=room))
    return make_plans(task, builder=main.interpreter.b, near=[main.evaluated])


def of_memory() -> int:
    """Bytes of an item by default."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE // ITEMS
