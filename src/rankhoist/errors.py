"""The one exception tree: everything rankhoist raises on purpose derives from `RankhoistError`."""

from rankhoist_client.errors import (
    CallError,
    DeadlineError,
    ExtraError,
    InputError,
    RankhoistError,
    ServeError,
    UnavailableError,
)

__all__ = [
    "AppendError",
    "ArtifactError",
    "BackendError",
    "CallError",
    "CaptureError",
    "CarriedDataWarning",
    "CommandError",
    "ContextError",
    "DeadlineError",
    "ExportError",
    "ExportWarning",
    "ExtraError",
    "HoistingWarning",
    "InputError",
    "ProfileError",
    "RankhoistError",
    "ScoringError",
    "ServeError",
    "TrainingError",
    "TrainingModeError",
    "UnavailableError",
    "UnsupportedModelError",
    "UnusedInputWarning",
    "VerificationError",
    "VocabularyError",
    "WeightsError",
]


class CaptureError(RankhoistError):
    """The model or its example inputs cannot be turned into a graph to analyse."""


class TrainingModeError(CaptureError):
    """A module is in training mode, where dropout and batch statistics make rows depend on chance or on each other."""


class ContextError(CaptureError):
    """The `context` or the `item` argument does not describe the inputs: unknown names, unknown columns, the same in
    both, or nothing left per candidate.
    """


class ExportError(CaptureError):
    """`torch.export` refused the model; the message says which module and what can be done."""


class UnsupportedModelError(CaptureError):
    """The model exports, but cannot be hoisted soundly: it draws random numbers or writes to its own state."""


class VocabularyError(InputError, IndexError):
    """An id is outside of the table that it indexes; as PyTorch's own error for it, it is an `IndexError`, too."""


class AppendError(RankhoistError):
    """A prepared state cannot grow: a longer history changes what was computed of the shorter one."""


class WeightsError(RankhoistError):
    """A state dict does not fit the hoisted model."""


class BackendError(RankhoistError):
    """A backend or an export format is unknown, lacks what it needs on this machine, or refuses a stage."""


class VerificationError(RankhoistError):
    """Verification could not be carried out (a *failed* certificate is a result, not an error)."""


class ArtifactError(RankhoistError):
    """A hoisted model cannot be saved, or a file is no artifact, is damaged or comes from a newer version."""


class TrainingError(RankhoistError):
    """A training run cannot be carried out, or not be resumed from what an earlier one left."""


class CommandError(RankhoistError):
    """A command line argument cannot be used."""


class UnusedInputWarning(UserWarning):
    """An input marked as context is never read by the model."""


class CarriedDataWarning(UserWarning):
    """A `.pt2` archive holds more data behind its example inputs than their rows."""


class ExportWarning(UserWarning):
    """An exported form does not take all that the hoisted model takes."""


class HoistingWarning(UserWarning):
    """A model runs, but perhaps not as fast as it could: a mistake of ours kept it from being hoisted (please report
    it), or its plans were chosen for another machine.
    """


class ScoringError(RankhoistError):
    """A scoring job cannot go on: an input file, a column, a row or the output folder is not as expected."""


class ProfileError(RankhoistError):
    """A machine profile cannot be read, or is of another version."""
