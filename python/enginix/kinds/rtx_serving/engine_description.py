"""What a server must know of an engine: ``engine/engine.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import ManifestError
from enginix.kinds.rtx.engine_shape import EngineShape

PLAN_FOLDER, FILE = "engine", "engine.json"
FORMAT = 1
_COUNTS = (
    "length", "slots", "stepTokens", "maxSeqLen", "cacheLength", "layers", "keyValueHeads", "headSize",
    "vocabSize",
)  # fmt: skip


@dataclass(frozen=True)
class EngineDescription:
    """Names and sizes of what a server binds.

    Attributes:
        plan: file of the plan.
        length: bytes of the plan.
        version: of TensorRT for RTX, which wrote it.
        targets: SMs that the plan is for.
        dtype: of the KV cache.
    """

    plan: Path
    length: int
    version: str
    targets: tuple[int, ...]
    shape: EngineShape
    layers: int
    key_value_heads: int
    head_size: int
    vocab_size: int
    dtype: str

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the keys, and of the values, of one layer."""
        return self.shape.slots, self.key_value_heads, self.shape.cache_length, self.head_size

    @property
    def caches(self) -> tuple[str, ...]:
        """Return the names of the caches; each has an output of the same name and ``_next``."""
        return tuple(f"{part}_{layer}" for layer in range(self.layers) for part in ("key", "value"))


def read_engine_description(engine: Path) -> EngineDescription:
    """Read the description of an engine directory.

    Raises:
        ManifestError: it is missing or damaged.
    """
    path = engine / PLAN_FOLDER / FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']!r}, not {FORMAT}")
        counts = {name: content[name] for name in _COUNTS}
        wrong = [name for name, count in counts.items() if type(count) is not int or count < 1]
        if wrong:
            raise ValueError(f"{wrong[0]} is {counts[wrong[0]]!r}")
        shape = EngineShape(counts["slots"], counts["stepTokens"], counts["maxSeqLen"])
        if shape.cache_length != counts["cacheLength"]:
            raise ValueError(f"cacheLength is {counts['cacheLength']}, not {shape.cache_length}")
        return EngineDescription(
            plan=path.with_name(str(content["plan"])),
            length=counts["length"],
            version=str(content["version"]),
            targets=tuple(map(int, content["targets"])),
            shape=shape,
            layers=counts["layers"],
            key_value_heads=counts["keyValueHeads"],
            head_size=counts["headSize"],
            vocab_size=counts["vocabSize"],
            dtype=str(content["dtype"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise ManifestError(
            f"the engine's description cannot be read: {type(e).__name__}: {e}",
            where=str(path),
            fix="build the engine again",
        ) from e
