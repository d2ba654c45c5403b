"""How large ids may be is read from the graphs, wherever a plan looks them up."""

from __future__ import annotations

import pytest
from serving import CONTEXT, ITEMS, TAGS, USERS, Ranker, inputs

import rankhoist
from rankhoist.serve.vocabulary import vocabulary


@pytest.mark.parametrize("level", ["expand", "lookup", "request", "full"])
def test_every_level_knows_every_table(level: str):
    hoisted = rankhoist.hoist(Ranker().eval(), inputs(8, 8), context=list(CONTEXT), level=level)
    found = {name: set(bounds.tolist()) for name, bounds in vocabulary(hoisted).items()}
    assert found == {"user": {USERS}, "item": {ITEMS}, "tags": {TAGS}}
