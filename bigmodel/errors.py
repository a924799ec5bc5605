"""What a person can have done wrong. The message is complete: what was asked, what there is, what to do."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class BigmodelError(Exception):
    """The command prints the message and leaves with exit code 2; there is no traceback to read."""


class ConfigError(BigmodelError):
    """The experiment file or the command line asks for something that does not exist or does not fit."""


class DataError(BigmodelError):
    """A file, a column or a row is not what the experiment says it is."""


class ResourceError(BigmodelError):
    """More processors, memory, disk or time was asked for than there is."""


class CheckpointError(BigmodelError):
    """A saved state is missing, damaged or belongs to another experiment."""


class ServeError(BigmodelError):
    """A model cannot be served as asked."""


class TrainingError(BigmodelError):
    """Training cannot go on."""


class Interrupted(BigmodelError):
    """Somebody asked the run to stop; its state is saved."""


class Preempted(Interrupted):
    """A machine of the run is about to be taken away; its state is saved."""


def missing(path: str) -> str:
    """What is wrong of a path at which there is nothing: no such file, or a link that leads nowhere."""
    return f"is a link to {os.readlink(path)}, which does not exist" if os.path.islink(path) else "no such file"


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(error: BaseException) -> str:
    """What an error that holds a traceback says at its end; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory: of a GPU or this process, or from torch's CPU allocator or oneDNN,
    which have no class for it."""
    words = ("out of memory", "_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate")
    return (
        isinstance(error, MemoryError)
        or any(each in str(error) for each in words)
        or str(error) == "could not create a primitive"
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'hidden_size'?` for a close match among the known words, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
