"""The error of checks on exports and engines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from enginix.errors import EXIT_CHECK_FAILED, EnginixError


class ExportError(EnginixError):
    """The exporter failed, or its export is not the given model."""

    exit_code: ClassVar[int] = EXIT_CHECK_FAILED
    kind: ClassVar[str] = "export"


def make_mismatch(what: str, where: Path | str | None) -> ExportError:
    fix = "export again; if it stays so, TensorRT Edge-LLM does not support this model"
    return ExportError(what, where=None if where is None else str(where), fix=fix)


def refuse_differences(differences: Iterable[str], where: Path | str) -> None:
    """Refuse an export that differs from its model.

    Raises:
        ExportError: has the first difference.
    """
    for difference in differences:
        raise make_mismatch(difference, where)


@contextlib.contextmanager
def name_final_directory(partial: Path, out: Path, artefact: str) -> Iterator[None]:
    """Name files in errors as they would be in ``out``: the directory of a failed build is deleted."""
    try:
        yield
    except EnginixError as e:
        where, what = (
            None
            if text is None
            else text.replace(f"{partial}/", f"of the {artefact}: ").replace(str(partial), str(out))
            for text in (e.where, e.what)
        )
        if (where, what) == (e.where, e.what):
            raise
        raise type(e)(str(what), where=where, fix=e.fix) from e
