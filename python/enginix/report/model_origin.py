"""Which Hugging Face model something was made from, as far as manifests and evidence tell."""

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
        """Whether they are known to be two models; what one of them does not tell is no difference."""
        if self.commit is not None and other.commit is not None:
            return self.commit != other.commit
        return None not in (self.config, other.config) and self.config != other.config


def read_model_origin(model: Mapping[str, Any]) -> ModelOrigin | None:
    """A model's identity as manifests and evidence hold it; None where nothing identifies it."""
    repo, revision = accept_short_text(model.get("repo")), accept_short_text(model.get("revision"))
    files = model.get("files")
    config = files.get("config.json") if isinstance(files, dict) else None
    config = accept_short_text(config.get("sha256") if isinstance(config, dict) else config)
    commit = f"{repo} at {revision[:12]}" if repo and revision else repo
    return None if commit is None and config is None else ModelOrigin(commit, config)


def make_printable(line: str) -> str:
    """A stranger's line that a terminal only shows."""
    return "".join(c if c.isprintable() else "?" for c in line)[:100] or "?"


def accept_short_text(value: Any) -> str | None:
    """``value`` where it is a short line of text; None for anything else."""
    return value if isinstance(value, str) and value and value.isprintable() and len(value) <= 200 else None
