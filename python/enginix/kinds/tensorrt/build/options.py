"""trtllm-build's options by ``data/tensorrt/build_options.json``, for the command line; nix/check/options.nix
reads the same table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from enginix import console
from enginix.errors import UsageError
from enginix.letter_case import to_camel_case, to_kebab_case, to_snake_case
from enginix.tables import load_table
from enginix.wording import list_known, suggest_name

OptionValue = bool | int | str | list[str]
LARGEST_INTEGER = (1 << 31) - 1


@dataclass(frozen=True)
class EngineLimits:
    """Sizes that are built into an engine; ``maxSeqLen`` counts prompt and answer together."""

    maxBatchSize: int
    maxInputLen: int
    maxSeqLen: int
    maxNumTokens: int
    maxBeamWidth: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _check_limit(name, value)
        if self.maxInputLen > self.maxSeqLen:
            raise UsageError(
                f"maxInputLen {self.maxInputLen} is more than maxSeqLen {self.maxSeqLen}",
                fix="maxSeqLen counts prompt and answer together: raise it, or lower maxInputLen",
            )
        if self.maxNumTokens < self.maxBatchSize * self.maxBeamWidth:
            raise UsageError(
                f"maxNumTokens {self.maxNumTokens} is less than maxBatchSize × maxBeamWidth "
                f"= {self.maxBatchSize * self.maxBeamWidth}",
                fix="raise maxNumTokens, or lower maxBatchSize",
            )

    def flags(self) -> list[str]:
        """Return all limits as flags of trtllm-build."""
        rows = load_table("build_options")["limits"]
        limits = sorted(asdict(self).items())
        return [word for name, value in limits for word in (rows[name]["flag"], str(value))]

    def as_build_config(self) -> dict[str, int]:
        """Return the limits by their names in an engine's config.json."""
        return {to_snake_case(name): value for name, value in asdict(self).items()}


def resolve_limits(
    context: int | None, given: Mapping[str, int | None], profile: Mapping[str, int] | None = None
) -> EngineLimits:
    """Resolve limits from the given ones, a profile's and the model's context, as nix/check/limits.nix does.

    A maxNumTokens by default or by a profile is at most the tokens of all sequences together.

    Raises:
        UsageError: maxSeqLen is missing and the context is unknown; or a limit contradicts another or the
            context.
    """
    chosen = {n: row["default"] for n, row in load_table("build_options")["limits"].items()}
    if unknown_names := sorted(set(given) - set(chosen)):
        known = list_known(unknown_names[0], sorted(chosen))
        raise UsageError(f"unknown limits {unknown_names}", fix=known)
    for name, value in given.items():
        if value is not None:
            _check_limit(name, value)
    chosen |= {**(profile or {}), **{n: v for n, v in given.items() if v is not None}}
    longest = chosen["maxSeqLen"] if chosen["maxSeqLen"] is not None else context
    if longest is None:
        raise UsageError("--max-seq-len is needed: the checkpoint does not name the model's context")
    if context is not None and longest > context:
        raise UsageError(
            f"maxSeqLen {longest} is more than the model's context, {context}", fix=f"use at most {context}"
        )
    if given.get("maxNumTokens") is None:
        chosen["maxNumTokens"] = min(chosen["maxNumTokens"], chosen["maxBatchSize"] * longest)
    prompt = chosen["maxInputLen"] if chosen["maxInputLen"] is not None else max(1, longest - 1)
    return EngineLimits(**{**chosen, "maxSeqLen": longest, "maxInputLen": prompt})


def _check_limit(name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} is {value!r}", fix="pass a whole number of at least 1")
    # The same bound as nix/check/limits.nix, where larger numbers would overflow.
    if value > LARGEST_INTEGER:
        raise UsageError(f"{name} is {value}", fix=f"pass at most {LARGEST_INTEGER}")


def check_build_options(values: Mapping[str, Any], runtime: str) -> dict[str, OptionValue]:
    """Check names and types of options for a runtime; warn where the runtime's text was not read.

    Raises:
        UsageError: an option is unknown, removed or of another type; names the nearest or the replacement.
    """
    tables, checked = load_table("build_options"), dict[str, OptionValue]()
    for name, value in values.items():
        checked[name] = _check_option(name, value, runtime)
        if runtime not in tables["read"]:
            console.print_message(
                f"warning: option {name}: checked by the text of {tables['read'][-1]}; that of {runtime} was "
                "not read"
            )
    return checked


def _check_option(name: str, value: Any, runtime: str) -> OptionValue:
    tables = load_table("build_options")
    rows, where = tables["options"], f"option {name}"
    if name in tables["limits"]:
        raise UsageError("is a limit", where=where, fix=f"pass it as --{to_kebab_case(name)}")
    if name in tables["removed"]:
        removed = tables["removed"][name]
        state = "deprecated" if removed.get("deprecated") else "gone"
        raise UsageError(
            f"{removed['flag']} is {state} since TensorRT-LLM {removed['since']}",
            where=where,
            fix=f"use {removed['instead']}" if removed["instead"] else "leave it out",
        )
    if name in tables["own"]:
        raise UsageError("enginix writes it itself", where=where, fix=f"it is {tables['own'][name]['why']}")
    if name not in rows or (runtime in tables["read"] and runtime not in rows[name]["runtimes"]):
        known = suggest_name(name, rows, f"known: {', '.join(sorted(rows))}")
        raise UsageError(f"unknown to the runtime {runtime}", where=where, fix=known)
    kind, choices = rows[name]["type"], rows[name]["choices"] or ()
    words = value if isinstance(value, list) else []
    fits, expected = {
        "switch": (isinstance(value, bool), "true or false"),
        "bool": (isinstance(value, bool), "true or false"),
        "int": (type(value) is int and 0 <= value <= LARGEST_INTEGER, "a whole number"),
        "enum": (isinstance(value, str) and value in choices, ", ".join(choices)),
        "strings": (
            bool(words) and all(isinstance(v, str) and v in (choices or (v,)) for v in words),
            f"a list of {', '.join(choices)}" if choices else "a list",
        ),
        "string": (isinstance(value, str), "a text"),
    }[kind]
    if not fits:
        raise UsageError(f"is {value!r}", where=where, fix=f"pass {expected}")
    return value  # type: ignore[no-any-return]


def parse_plugin_option(text: str) -> tuple[str, OptionValue]:
    """Parse ``gemm-plugin=auto`` to (``gemmPlugin``, ``auto``), with booleans and numbers as such.

    Raises:
        UsageError: the text has no ``=``.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--plugin {text!r}", fix="pass NAME=VALUE, for instance gemm-plugin=auto")
    row = load_table("build_options")["options"].get(to_camel_case(name), {})
    kind = row.get("type")
    if kind in ("switch", "bool"):
        # trtllm-build's word for true is "enable".
        switch_values = {"true": True, "enable": True, "false": False, "disable": False}
        return to_camel_case(name), switch_values.get(value, value)
    if kind == "int" and re.fullmatch("[0-9]+", value):
        return to_camel_case(name), int(value)
    return to_camel_case(name), value.split(",") if kind == "strings" else value


def format_option_flags(values: Mapping[str, OptionValue]) -> list[str]:
    """Format options as flags of trtllm-build, sorted by name."""
    rows = load_table("build_options")["options"]
    words: list[str] = []
    for name in sorted(values):
        value, row = values[name], rows[name]
        if row["type"] == "bool":
            words += [row["flag"]] if value else []
        elif isinstance(value, list):
            words += [row["flag"], *value]
        else:
            spelled = {True: "enable", False: "disable"}[value] if isinstance(value, bool) else str(value)
            words += [row["flag"], spelled]
    return words
