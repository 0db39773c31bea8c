"""Every error a user can meet. Each message names the object, what was found, what was expected, what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


class QeilError(Exception):
    """Base of all errors of this package; the command line prints its text on one line and exits with 1."""


class ModelError(QeilError):
    """The model cannot be read or traced (not a model, truncated, mutates its buffers, ...)."""


class UnknownFamilyError(ModelError):
    """A language model of a family, or with a part, that has no form of its own here."""


class UnboundDimensionError(ModelError):
    """A tensor has a dynamic dimension that the workload does not bind."""


class UnsupportedOperatorError(QeilError):
    """An operator runs on none of the allowed devices."""


class PinError(QeilError):
    """Pins contradict one another, or name an operator or a device that does not exist."""


class CapacityError(QeilError):
    """No assignment fits into the memory of the target's devices."""


class ThermalError(QeilError):
    """No assignment stays below the thermal ceiling of the target's devices."""


class TargetError(QeilError):
    """A target, device profile, engine or provider is unknown, malformed or not on this machine."""


class BackendError(QeilError):
    """An engine refused to compile or run a stage."""


class FailoverError(QeilError):
    """There is no plan that does without what was lost. `finished` are samples that had ended before."""

    def __init__(self, text: str, finished: Sequence[Any] = ()) -> None:
        super().__init__(text)
        self.finished = list(finished)


class InputError(QeilError):
    """What is handed to a compiled model does not fit it: tensors and signature, prompts and context, settings."""


class GenerationError(QeilError):
    """A decoder returned logits that no token can be chosen from."""


class ArtifactError(QeilError):
    """An artifact is missing, damaged, unsafe or of an unknown schema version."""


class OutputError(QeilError):
    """The output cannot be written: it exists, the disk is full, or the folder is not writable."""


class VerificationError(QeilError):
    """Outputs of a plan differ from the golden outputs by more than the tolerance."""


def first_line(error: BaseException) -> str:
    """First non-empty line of another library's error, without terminal colours, for one-line reports."""
    lines = [s.strip() for s in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if s.strip()]
    return lines[0] if lines else type(error).__name__
