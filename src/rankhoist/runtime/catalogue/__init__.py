"""A store of items: what a model computes of an item alone, once per item and version of the weights.

* `stage` runs the item stage over rows of items, block by block;
* `layout` lays what it keeps out in a few tables, and reads rows of them;
* `index` finds the row of an id;
* `best` finds the highest scores of all items;
* `files` are the store as a folder, mapped by the processes that read it;
* `build` makes a store, piece by piece;
* `store` is what callers hold: it is read and updated;
* `scoring` are the methods of a hoisted model that take one.
"""

from rankhoist.runtime.catalogue.scoring import CatalogueScoring
from rankhoist.runtime.catalogue.store import Store

__all__ = ["CatalogueScoring", "Store"]
