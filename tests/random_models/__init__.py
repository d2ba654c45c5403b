"""Random small ranking models, drawn by Hypothesis and built directly as ATen graphs: `torch.export` takes seconds.

A model is drawn step by step: inputs, then steps that each record a few operators on values recorded before, then
outputs. `steps` has a table for every family of operators; a new operator is one row, or one line of a list there.

* `rows`: how many rows there are, how long a history is, and how the sizes of a value tell them.
* `draft`: a model while it is drawn; it records operators, draws numbers and leaves out what is unstable.
* `inputs`, `bags`, `operands`, `steps`: what is drawn, and on which values.
* `model`, `printing`: a drawn model, its inputs and its truth; how a failing one is shown.
* `strategy`: a whole model, from Hypothesis or from any other source of numbers.
"""

from random_models.model import RandomModel
from random_models.rows import CANDIDATES, OFFSETS, REQUESTS, VOCABULARY
from random_models.steps.unruled import WITHOUT_RULE
from random_models.strategy import build, random_models

__all__ = ["CANDIDATES", "OFFSETS", "REQUESTS", "VOCABULARY", "WITHOUT_RULE", "RandomModel", "build", "random_models"]
