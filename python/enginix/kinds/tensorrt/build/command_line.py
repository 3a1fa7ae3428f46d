"""Parse command lines of trtllm-build as its argparse does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginix.errors import UsageError
from enginix.kinds.tensorrt.build.build_subject import RequestRefused
from enginix.tables import load_table

# Other names of two options; and options that replace the whole request by a file.
ALIASES = {
    "--max_decoder_seq_len": "--max_seq_len",
    "--max_multimodal_len": "--max_prompt_embedding_table_size",
}
WHOLE_REQUEST_FLAGS = ("--build_config", "--model_config", "--model_cls_file", "--model_cls_name")


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options of a command line of trtllm-build: name → value, flags as ``True``.

    Raises:
        RequestRefused: an option is unknown, lacks its value, or has one that argparse refuses.
        UsageError: an option names a file with a whole request.
    """
    rows = _collect_flag_rows()
    options: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word, equals, inline = words.pop(0).partition("=")
        name = _complete_flag(word, [*rows, *WHOLE_REQUEST_FLAGS])
        row = rows.get(name)
        if name in WHOLE_REQUEST_FLAGS:
            raise UsageError(f"{name} is not predicted: it names a file with settings", fix="leave it out")
        if row is None:
            raise RequestRefused("SystemExit", "other", f"unrecognized arguments: {name}")
        end = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        values = [inline] if equals else words[:end]
        words = words if equals else words[end:]
        options[row["flag"][2:]] = _parse_flag_values(name, row, values)
    return options


def _complete_flag(word: str, flags: Sequence[str]) -> str:
    """Return the flag that a word names or is the unambiguous beginning of, as argparse takes it."""
    if word in flags or not word.startswith("--"):
        return word
    matches = [flag for flag in flags if flag.startswith(word)]
    return matches[0] if len(matches) == 1 else word


def _collect_flag_rows() -> dict[str, Mapping[str, Any]]:
    tables = load_table("build_options")
    limits = {row["flag"]: {**row, "type": "int", "choices": None} for row in tables["limits"].values()}
    paths = {row["flag"]: {**row, "type": "string", "choices": None} for row in tables["own"].values()}
    paths["--dry_run"] = {**paths["--dry_run"], "type": "bool"}
    rows = {**limits, **paths, **{row["flag"]: row for row in tables["options"].values()}}
    return rows | {alias: rows[flag] for alias, flag in ALIASES.items()}


def _parse_flag_values(name: str, row: Mapping[str, Any], values: list[str]) -> Any:
    kind = row["type"]
    has_right_count = {"bool": len(values) == 0, "strings": len(values) > 0}.get(kind, len(values) == 1)
    choices = {"switch": ("enable", "disable")}.get(kind, row["choices"])
    words = [v.lower() for v in values] if name == "--kv_cache_type" else values
    is_allowed = choices is None or all(word in choices for word in words)
    if not has_right_count or not is_allowed or (kind == "int" and not _is_number(values[0])):
        raise RequestRefused("SystemExit", "other", f"argument {name}: {' '.join(values) or 'no value'}")
    if kind == "bool":
        return True
    return words if kind == "strings" else int(words[0]) if kind == "int" else words[0]


def _is_number(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True
