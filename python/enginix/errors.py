"""The errors that users see: each tells what happened, where, and how to fix it.

Exit codes are part of the command line's contract (``enginix --help`` lists them).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_INPUT = 3
EXIT_HUB = 4
EXIT_MACHINE = 5
EXIT_BUG = 70
EXIT_HUNG_UP = 129
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141
EXIT_TERMINATED = 143

EXIT_CODES = {
    EXIT_OK: "done",
    EXIT_CHECK_FAILED: "a gate, a check or a comparison failed",
    EXIT_USAGE: "wrong usage",
    EXIT_INPUT: "an input was refused: lock, model, checkpoint, engine, repository",
    EXIT_HUB: "the hub, an endpoint or the network failed",
    EXIT_MACHINE: "this machine lacks something: port, disk, memory, GPU, tool, Python library",
    EXIT_BUG: "a bug in enginix",
    EXIT_HUNG_UP: "ended by SIGHUP, as when a terminal is closed",
    EXIT_INTERRUPTED: "interrupted, as with Ctrl-C",
    EXIT_CLOSED_PIPE: "the reader of the output went away, as with head",
    EXIT_TERMINATED: "ended by SIGTERM, as with kill or timeout",
}


class EnginixError(Exception):
    """Base of every error that a user is meant to see.

    Args:
        what: what happened, one line.
        where: the file, tensor, key, model or address that it happened to.
        fix: what the user can do, one line or several.
    """

    exit_code: ClassVar[int] = EXIT_INPUT
    kind: ClassVar[str] = "error"

    def __init__(self, what: str, *, where: str | Path | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        first = f"{self.where}: {self.what}" if self.where else self.what
        return f"{first}\n  fix: {self.fix}" if self.fix else first

    def as_json(self) -> dict[str, str | int | None]:
        return {
            "error": self.kind,
            "what": self.what,
            "where": self.where,
            "fix": self.fix,
            "exitCode": self.exit_code,
        }


def describe_failure(e: Exception) -> str:
    """Return what happened in one line; of an exception that is no error of enginix, its class, too."""
    return e.what if isinstance(e, EnginixError) else f"{type(e).__name__}: {e}"


class LockError(EnginixError):
    """A lock that cannot be parsed, or that lists files which may not be fetched."""

    kind = "lock"


class HubError(EnginixError):
    """The hub or the network did not deliver."""

    exit_code = EXIT_HUB
    kind = "hub"


class EndpointError(HubError):
    """An endpoint is not reached, or refuses a request.

    Args:
        status: of its answer; None where it gave none.
    """

    kind = "endpoint"

    def __init__(
        self, what: str, *, where: str | None = None, fix: str | None = None, status: int | None = None
    ) -> None:
        self.status = status
        super().__init__(what, where=where, fix=fix)


class HashMismatch(HubError):
    """The received bytes do not have the hash that the lock pins."""

    kind = "hash-mismatch"


class ModelError(EnginixError):
    """A model directory that is incomplete, damaged or of an unknown architecture."""

    kind = "model"


class CheckpointError(EnginixError):
    """A TensorRT-LLM checkpoint that is incomplete, misshapen or inconsistent."""

    kind = "checkpoint"


class ManifestError(EnginixError):
    """An ``enginix.json`` that is missing or unreadable, or that the next stage does not accept."""

    kind = "manifest"


class RepositoryError(EnginixError):
    """A Triton model repository that Triton would refuse or misread."""

    kind = "repository"


class QuestionsError(EnginixError):
    """A user's own questions for a gate that cannot be read, or that judge nothing."""

    kind = "questions"


class MeasurementError(EnginixError):
    """A stored measurement that cannot be read."""

    kind = "measurement"


class GateError(EnginixError):
    """A quality gate failed, or could not be run; both refuse the artefact."""

    exit_code = EXIT_CHECK_FAILED
    kind = "gate"


class MachineError(EnginixError):
    """This machine lacks what the command needs."""

    exit_code = EXIT_MACHINE
    kind = "machine"


class UsageError(EnginixError):
    """Arguments that contradict each other."""

    exit_code = EXIT_USAGE
    kind = "usage"


class OutputTaken(UsageError):
    """The output of a command is there already, or another process writes it."""


class InterruptedWork(EnginixError):
    """The user ended the command."""

    exit_code = EXIT_INTERRUPTED
    kind = "interrupted"


class TerminatedWork(InterruptedWork):
    """The command was ended by SIGTERM."""

    exit_code = EXIT_TERMINATED


class HungUpWork(InterruptedWork):
    """The command was ended by SIGHUP."""

    exit_code = EXIT_HUNG_UP


class UnexpectedError(EnginixError):
    """A bug in enginix: an exception that no code foresaw."""

    exit_code = EXIT_BUG
    kind = "bug"
