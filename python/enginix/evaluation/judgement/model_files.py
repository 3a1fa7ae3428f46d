"""Gate ``files``: an engine's tokenizer, chat templates, end tokens and generation defaults are its model's.

Equal bytes are equal. Tools that quantize write some of these files anew, so others are compared by what
transformers reads of them: every piece, rule, special token and template; and what it passes over, since
servers and its earlier releases read more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from enginix.errors import GateError, ModelError
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers import hf
from enginix.model.end_tokens import read_end_tokens
from enginix.model.jsonfile import read_object
from enginix.model.tokenizer_files import find_tokenizer_files
from enginix.tables import load_table

NAME = "files"
GENERATION = "generation_config.json"
# Written by the tool that saved the file, and read by no engine.
_VOLATILE = frozenset(("transformers_version", "_from_model_config"))
# What transformers reads of them is compared; of all other files the bytes.
_INTERPRETED = frozenset(
    (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        GENERATION,
    )
)
# Read by tokenizers of some releases or classes, and passed over by others.
_SETTINGS = ("auto_map", "add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens")
# Other spellings of tokenizer.json, which transformers prefers where it exists.
_SUPERSEDED = ("vocab*.json", "vocab.txt", "merges.txt", "tokenizer.model")
_STRANGERS = ("config.json", "*.py", "*processor_config.json")


def judge_files(
    engine_files: Path, model_files: Path, end_tokens: tuple[int, ...] | None, bounds: Mapping[str, Any]
) -> GateOutcome:
    """Compare the files that an engine is served with, with the model's.

    Args:
        engine_files: directory of the engine's tokenizer.
        model_files: the model's directory, or the copy beside the reference's answers.
        end_tokens: those of the engine's manifest; None where it names none.

    Raises:
        GateError: a file cannot be read.
    """
    names = _list_names(engine_files) | _list_names(model_files)
    different = [name for name in sorted(names) if not _bytes_match(engine_files / name, model_files / name)]
    faults: list[str] = []
    if different:
        faults += _compare_files(engine_files, model_files, different)
    faults += _compare_end_tokens(engine_files, model_files, end_tokens)
    faults += [f"{name} is no file of a tokenizer" for name in _list_strangers(engine_files, model_files)]
    summary = (
        f"{len(faults)} differ from the model's: {'; '.join(faults[:3])}"
        if faults
        else f"{len(names)} files are the model's"
        + (f", {len(different)} of them written anew: {', '.join(different)}" if different else "")
    )
    detail = {**bounds, "files": sorted(names), "writtenAnew": different, "faults": faults}
    return GateOutcome(NAME, not faults, summary, detail)


def _list_names(directory: Path) -> set[str]:
    try:
        return {path.relative_to(directory).as_posix() for path in find_tokenizer_files(directory)}
    except ModelError as e:
        raise GateError(e.what, where=e.where, fix=e.fix) from e


def _list_strangers(engine_files: Path, model_files: Path) -> list[str]:
    """Return files that are no tokenizer's, and that decide which class reads it; a model has its own."""
    if any(engine_files.glob("*.safetensors")):
        return []
    names = sorted(path.name for pattern in _STRANGERS for path in engine_files.glob(pattern))
    return [name for name in names if not _bytes_match(engine_files / name, model_files / name)]


def _bytes_match(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _compare_files(engine_files: Path, model_files: Path, different: list[str]) -> Iterator[str]:
    fast = (engine_files / "tokenizer.json").is_file() and (model_files / "tokenizer.json").is_file()
    for name in different:
        if name in _INTERPRETED or (
            fast
            and any(Path(name).match(pattern) for pattern in _SUPERSEDED)
            and not (engine_files / name).is_file()
        ):
            continue
        yield f"{name}"
    if GENERATION in different:
        yield from _compare_generation(engine_files / GENERATION, model_files / GENERATION)
    tokenizers = [hf.TransformersTokenizer(path) for path in (engine_files, model_files)]
    described = [tokenizer.describe() for tokenizer in tokenizers]
    for key in described[1]:
        if described[0][key] != described[1][key]:
            yield _name_difference(key, described[0][key], described[1][key])
    yield from _compare_conversations(*tokenizers)
    yield from _compare_other_readings(engine_files, model_files, described[1])


def _compare_other_readings(
    engine_files: Path, model_files: Path, described: Mapping[str, Any]
) -> Iterator[str]:
    """Compare what transformers passes over, and servers or earlier releases of transformers read.

    Each entry of one's files must be the other's, as it is written there or as transformers reads it.

    Args:
        described: what transformers reads of the model's files.
    """
    directories = (engine_files, model_files)
    rows = [_read_optional(path / "tokenizer.json").get("added_tokens") for path in directories]
    if rows[0] not in (rows[1], described.get("added_tokens")):
        yield "tokenizer.json: other flags of added tokens"
    settings = [_read_optional(path / "tokenizer_config.json") for path in directories]
    for key in _SETTINGS:
        # A tool that writes the file anew writes what is absent as false, and drops code that it did not run.
        ours, theirs = (each.get(key) or None for each in settings)
        if ours != theirs and (ours or key != "auto_map"):
            yield f"tokenizer_config.json: {key} is {ours!r}, it was {theirs!r}"
    yield from _compare_entries(engine_files, model_files, described)
    for fault in _compare_entries(model_files, engine_files, described):
        yield f"the model's {fault}"


def _compare_entries(directory: Path, other: Path, described: Mapping[str, Any]) -> Iterator[str]:
    """Compare entries that one directory has and the other one lacks, or has with another value."""
    rows = described.get("added_tokens", [])
    tokens = {row.get("content"): row.get("id") for row in rows}
    special = [row.get("content") for row in rows if row.get("special")]
    known = _read_optional(other / "added_tokens.json")
    for text, number in _read_optional(directory / "added_tokens.json").items():
        if number not in (tokens.get(text), known.get(text)):
            yield f"added_tokens.json: {text!r} is {number!r}"
    known = _read_optional(other / "special_tokens_map.json")
    for key, token in _read_optional(directory / "special_tokens_map.json").items():
        # A list has no name of its own in later releases: what is special is what counts.
        listed = token if isinstance(token, list) else [token]
        pieces = [each.get("content") if isinstance(each, dict) else each for each in listed]
        is_read = pieces == [described["special tokens"].get(key)]
        if isinstance(token, list):
            is_read = all(piece in special for piece in pieces)
        if token != known.get(key) and not is_read:
            yield f"special_tokens_map.json: {key} is {', '.join(map(repr, pieces))}"
    # transformers moves templates from one file to another.
    read = described.get("chat template")
    texts = set(read.values()) if isinstance(read, dict) else {read}
    for name, text in sorted({*_list_templates(directory)} - {*_list_templates(other)}):
        if name != "default" or text not in texts:
            yield f"another chat template {name!r}"


def _list_templates(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of each chat template in a JSON file."""
    for file in ("tokenizer_config.json", "chat_template.json"):
        written = _read_optional(directory / file).get("chat_template")
        rows = written if isinstance(written, list) else [{"name": "default", "template": written}]
        for row in rows:
            if isinstance(row, dict) and isinstance(row.get("template"), str):
                yield str(row.get("name")), row["template"]


def _read_optional(path: Path) -> Mapping[str, Any]:
    return read_object(path) if path.is_file() else {}


def _name_difference(key: str, engine_value: Any, model_value: Any) -> str:
    """Say what differs, short: a vocabulary has too many entries to show."""
    if isinstance(engine_value, dict) and isinstance(model_value, dict):
        keys = sorted(
            str(k)
            for k in engine_value.keys() | model_value.keys()
            if engine_value.get(k) != model_value.get(k)
        )
        return f"{key}: {len(keys)} entries, for instance {keys[0]!r}"
    texts = [json.dumps(value, ensure_ascii=False, default=str) for value in (engine_value, model_value)]
    start = next((n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    a, b = (text[max(0, start - 10) : start + 30] for text in texts)
    return f"{key}: {a!r} for {b!r}"


def _compare_generation(engine_file: Path, model_file: Path) -> Iterator[str]:
    contents = []
    for path in (engine_file, model_file):
        raw = read_object(path) if path.is_file() else {}
        contents.append({key: value for key, value in raw.items() if key not in _VOLATILE})
    for key in sorted(contents[0].keys() | contents[1].keys()):
        if contents[0].get(key) != contents[1].get(key):
            yield f"{GENERATION}: {key} is {contents[0].get(key)!r}, the model's {contents[1].get(key)!r}"


def _compare_end_tokens(
    engine_files: Path, model_files: Path, end_tokens: tuple[int, ...] | None
) -> Iterator[str]:
    expected = read_end_tokens(model_files)
    # Without a default of its own, an engine takes its manifest's.
    own = read_end_tokens(engine_files) or expected
    for where, ends in ((GENERATION, own), ("manifest", expected if end_tokens is None else end_tokens)):
        if ends != expected:
            yield f"end tokens of the {where}: {list(ends)}, the model's {list(expected)}"


def _compare_conversations(
    engine: hf.TransformersTokenizer, model: hf.TransformersTokenizer
) -> Iterator[str]:
    """Compare the tokens of conversations: a system message, several turns, tools."""
    for row in load_table("gate_conversations")["conversations"]:
        tokens = [
            tokenizer.encode_conversation(row["messages"], row.get("tools")) for tokenizer in (engine, model)
        ]
        if tokens[0] != tokens[1]:
            yield f"conversation {row['id']!r} has other tokens"
