"""The static sizes of an rtx engine, and what a server must know of it: ``engine/engine.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from enginix.errors import ManifestError
from enginix.letter_case import camel_case_keys, to_camel_case

PLAN_FOLDER, FILE, PLAN_FILE = "engine", "engine.json", "decoder.plan"
FORMAT = 1


@dataclass(frozen=True)
class EngineShape:
    """The sizes that every tensor of an engine is made of; all are fixed when it is built.

    A step takes ``step_tokens`` tokens of each slot: a piece of its prompt, or its last token and padding.
    One step length serves prompts and answers, so that the weights are in the engine once.

    Attributes:
        slots: sequences that are computed together.
        step_tokens: tokens of each slot in one step.
        max_seq_len: tokens of a sequence, prompt and answer together.
    """

    slots: int
    step_tokens: int
    max_seq_len: int

    @property
    def cache_length(self) -> int:
        """Positions of each slot in the KV cache: a last token's padding is written behind it."""
        return self.max_seq_len + self.step_tokens - 1


@dataclass(frozen=True)
class EngineDescription(EngineShape):
    """Names and sizes of what a server binds.

    Attributes:
        plan: file of the plan.
        length: bytes of the plan.
        version: of TensorRT for RTX, which wrote it.
        targets: SMs that the plan is for.
        dtype: of the KV cache.
    """

    layers: int
    key_value_heads: int
    head_size: int
    vocab_size: int
    dtype: str
    plan: Path
    length: int
    version: str
    targets: tuple[int, ...]

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the keys, and of the values, of one layer."""
        return self.slots, self.key_value_heads, self.cache_length, self.head_size

    @property
    def caches(self) -> tuple[str, ...]:
        """Return the names of the caches; each has an output of the same name and ``_next``."""
        return tuple(f"{part}_{layer}" for layer in range(self.layers) for part in ("key", "value"))

    def as_json(self) -> dict[str, Any]:
        """Return the content of engine.json."""
        sizes: dict[str, Any] = camel_case_keys(asdict(self))
        return {**sizes, "format": FORMAT, "plan": self.plan.name, "cacheLength": self.cache_length}


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
        values = {field.name: content[to_camel_case(field.name)] for field in fields(EngineDescription)}
        for field in fields(EngineDescription):
            value = values[field.name]
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ValueError(f"{to_camel_case(field.name)} is {value!r}")
        plan, targets = path.with_name(str(values["plan"])), tuple(map(int, values["targets"]))
        description = EngineDescription(**{**values, "plan": plan, "targets": targets})
        if description.cache_length != content["cacheLength"]:
            raise ValueError(f"cacheLength is {content['cacheLength']}, not {description.cache_length}")
        return description
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise ManifestError(
            f"the engine's description cannot be read: {type(e).__name__}: {e}",
            where=path,
            fix="build the engine again",
        ) from e
