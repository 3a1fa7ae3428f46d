"""The kinds of engines, by name.

A kind is a folder beside this one, whose ``kind.py`` describes it (:class:`.engine_kind.EngineKind`). It is
imported when it is asked for: to list the names costs nothing, and a part of the package without a kind's
folder works for the others.
"""

from __future__ import annotations

import importlib
from typing import Any

from enginix.errors import UsageError
from enginix.kinds.registry.engine_kind import EngineKind, StartModule, TritonSupport
from enginix.tables import load_table
from enginix.wording import list_known

KIND_NAMES: tuple[str, ...] = tuple(load_table("engine_kinds")["kinds"])
# The kind of an artefact whose manifest names none.
DEFAULT_KIND: str = load_table("engine_kinds")["default"]


def find_kind(name: str | None) -> EngineKind:
    """Return the kind of that name.

    Raises:
        UsageError: there is no such kind.
    """
    kind = get_kind(name)
    if kind is None:
        raise UsageError(f"unknown kind {name!r}", fix=list_known(str(name), KIND_NAMES))
    return kind


def get_kind(name: str | None) -> EngineKind | None:
    """Return the kind of that name; None for a name of a manifest that is no kind."""
    if name not in KIND_NAMES:
        return None
    kind: EngineKind = importlib.import_module(f"enginix.kinds.{name}.kind").KIND
    return kind


def list_kinds() -> tuple[EngineKind, ...]:
    """Return every kind, in the order in which people read them."""
    return tuple(find_kind(name) for name in KIND_NAMES)


def list_triton_kinds() -> tuple[str, ...]:
    """Return the names of the kinds that Triton serves."""
    return tuple(kind.name for kind in list_kinds() if kind.triton is not None)


def find_triton_support(name: str) -> TritonSupport:
    """Return how Triton serves a kind.

    Raises:
        UsageError: there is no such kind, or Triton does not serve it.
    """
    kind = find_kind(name)
    if kind.triton is None:
        raise UsageError(
            f"kind {name} is not served by Triton", fix=f"pass one of {', '.join(list_triton_kinds())}"
        )
    return kind.triton


def find_start_module(name: str | None) -> StartModule | None:
    """Return what the start of a kind's server needs besides; None where nothing does."""
    kind = get_kind(name)
    if kind is None or kind.triton is None or kind.triton.start is None:
        return None
    module: StartModule = load_hook(kind.triton.start)
    return module


def is_portable(name: str | None) -> bool:
    """Whether engines of a kind run in a Python of this package; False for a name that is no kind."""
    kind = get_kind(name)
    return kind is not None and kind.is_portable


def has_rank_processes(name: str | None) -> bool:
    """Whether Triton serves a kind by a process a GPU; False for a name that is no kind."""
    kind = get_kind(name)
    return kind is not None and kind.triton is not None and kind.triton.has_rank_processes


def load_hook(module: str) -> Any:
    """Import the module that a description names; the caller states its type."""
    return importlib.import_module(module)
