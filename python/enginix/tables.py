"""The project's tables (``data/*/*.json``): Nix reads them with ``builtins.fromJSON``, Python here.

A folder holds what the same derivations read, so that a changed table rebuilds those alone.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def load_table(name: str) -> Any:
    """Return the parsed content of ``data/*/<name>.json``; do not modify it.

    Raises:
        FileNotFoundError: no such table.
    """
    # Not importlib.resources, which takes longer to import than most tables to read.
    data = Path(__file__).with_name("data")
    path = next(data.glob(f"*/{name}.json"), data / f"{name}.json")
    return json.loads(path.read_text("utf-8"))
