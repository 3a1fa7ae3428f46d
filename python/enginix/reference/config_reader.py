"""Typed access to a checkpoint's JSON."""

from __future__ import annotations

from typing import Any

from enginix.errors import CheckpointError
from enginix.reference.quantization import REBUILD


class ExecutorConfigReader:
    """Typed access to one JSON object, with errors that name the key."""

    def __init__(self, raw: dict[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(what, where=self.where, fix=REBUILD)

    def integer(self, key: str, default: int | None = None, least: int = 1, most: int = 2**31 - 1) -> int:
        value = self.raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.fail(f"{key} is {value!r}, expected an integer from {least} to {most}")
        return value

    def number(
        self, key: str, default: float | None = None, least: float = 1e-30, most: float = 1e30
    ) -> float:
        value = self.raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.fail(f"{key} is {value!r}, expected a number from {least:g} to {most:g}")
        return float(value)

    def text(self, key: str) -> str | None:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, str):
            raise self.fail(f"{key} is {value!r}, expected a string or null")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(f"{key} is {value!r}, expected true or false")
        return value

    def part(self, key: str) -> ExecutorConfigReader:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.fail(f"{key} is {value!r}, expected an object")
        return ExecutorConfigReader(value or {}, f"{self.where}: {key}")
