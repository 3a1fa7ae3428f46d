"""The project's tables (``data/*.json``): read by Nix with ``builtins.fromJSON`` and by Python here."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def table(name: str) -> Any:
    """The parsed content of ``data/<name>.json``; do not modify it.

    Raises:
        FileNotFoundError: no such table.
    """
    return json.loads(resources.files("enginix.data").joinpath(f"{name}.json").read_text("utf-8"))
