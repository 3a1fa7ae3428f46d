"""The Hugging Face model that an artefact was made from, by manifests and evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelOrigin:
    """A Hugging Face model.

    Attributes:
        commit: repository and commit, for models that were locked.
        config: SHA-256 of its ``config.json``.
    """

    commit: str | None
    config: str | None

    def __str__(self) -> str:
        return self.commit or f"a model whose config.json is {(self.config or '')[:12]}"

    def differs(self, other: ModelOrigin) -> bool:
        """Return whether they are known to be two models; values that one of them lacks are ignored."""
        if self.commit is not None and other.commit is not None:
            return self.commit != other.commit
        return None not in (self.config, other.config) and self.config != other.config


def read_model_origin(model: Mapping[str, Any]) -> ModelOrigin | None:
    """Read a model's identity from a manifest or evidence; None where it has none."""
    repo, revision = accept_short_text(model.get("repo")), accept_short_text(model.get("revision"))
    files = model.get("files")
    config = files.get("config.json") if isinstance(files, dict) else None
    config = accept_short_text(config.get("sha256") if isinstance(config, dict) else config)
    commit = f"{repo} at {revision[:12]}" if repo and revision else repo
    return None if commit is None and config is None else ModelOrigin(commit, config)


def make_printable(line: str, most: int = 100) -> str:
    """Return an untrusted line without characters that control a terminal, and of at most so many."""
    printable = "".join(c if c.isprintable() else "?" for c in line) or "?"
    return printable if len(printable) <= most else f"{printable[: most - 1]}…"


def accept_short_text(value: Any) -> str | None:
    """Return ``value`` if it is a short line of text, else None."""
    return value if isinstance(value, str) and value and value.isprintable() and len(value) <= 200 else None
