"""The project's tables (``data/*.json``): read by Nix with ``builtins.fromJSON`` and by Python here."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def table(name: str) -> Any:
    """The parsed content of ``data/<name>.json``; do not modify it.

    Raises:
        FileNotFoundError: no such table.
    """
    # Not importlib.resources, which takes longer to import than most tables to read.
    return json.loads(Path(__file__).with_name("data").joinpath(f"{name}.json").read_text("utf-8"))
