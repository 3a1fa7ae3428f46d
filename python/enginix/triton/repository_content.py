"""What a kind of engine puts into a Triton repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from enginix.errors import UsageError
from enginix.manifest import Manifest
from enginix.triton import contract
from enginix.triton.options import RepositoryOptions


@dataclass(frozen=True)
class RepositoryContent:
    """A repository before it is written.

    Attributes:
        configs: ``ModelConfig`` message of each model.
        known: the contract to check the configurations against.
        max_batch_size: the engine's limit.
        options: options for the manifest.
        fill: writes the files beside the configurations.
    """

    configs: Mapping[str, Any]
    known: Mapping[str, contract.ModelContract]
    max_batch_size: int | None
    options: dict[str, Any]
    fill: Callable[[Path], None]


@dataclass(frozen=True)
class ContentRequest:
    """What a repository is to be made of.

    Attributes:
        directory, manifest: of the engine.
        models: ``NvidiaModelOptions``.
        rootfs: root file system of the runtime's image, where NVIDIA's model.py are.
        code: directory that holds the enginix package which models import.
    """

    directory: Path
    manifest: Manifest
    options: RepositoryOptions
    models: Any
    rootfs: Path | None
    code: Path


class ContentModule(Protocol):
    """A kind's ``repository_content`` module."""

    def prepare_content(self, request: ContentRequest) -> RepositoryContent:
        """Return the content of an engine's repository."""
        ...

    def read_contract(self, options: Mapping[str, Any]) -> Mapping[str, contract.ModelContract]:
        """Return the contract of a repository with these options of its manifest."""
        ...


def refuse_changed_options(options: RepositoryOptions, names: Sequence[str], kind: str) -> None:
    """Refuse options that a kind does not have.

    Raises:
        UsageError: one of them is not its default.
    """
    for name in names:
        if getattr(options, name) != getattr(RepositoryOptions(), name):
            raise UsageError(
                f"not supported by the kind {kind}", where=f"--{name.replace('_', '-')}", fix="leave it out"
            )
