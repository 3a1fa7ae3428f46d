"""Read documents from a text, a JSONL file or a directory of them, and compute the digest of their files."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.errors import ModelError, UsageError
from enginix.files import sha256_file

PLAIN = (".txt", ".txt.gz")
LINES = (".jsonl", ".jsonl.gz", ".ndjson")
UNREAD = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".zst", ".zip", ".tar")
TERMS = ("LICENSE", "LICENCE", "NOTICE")  # files beside a dataset's texts that are not texts
LONGEST = 2 << 30  # characters of all documents together, which must fit in memory
PIECE = 4000  # characters

Render = Callable[[list[dict[str, Any]]], str]


@dataclass(frozen=True)
class Document:
    """A text to draw from.

    Attributes:
        text: never empty.
        is_rendered: the text comes from the tokenizer's chat template, special tokens included.
    """

    text: str
    is_rendered: bool = False


def list_text_files(source: Path) -> list[Path]:
    """Return the files of ``source`` with documents, in an order that is the same on every machine.

    Raises:
        UsageError: it has no such file.
    """
    if not source.exists():
        raise UsageError("no such file or directory", where=source, fix="pass text, JSONL, or a directory")
    if source.is_file():
        if not source.name.endswith(PLAIN + LINES):
            raise UsageError(
                f"not one of {', '.join(PLAIN + LINES)}", where=source, fix=_suggest_fix(source.suffix)
            )
        return [source]
    all_paths = sorted(
        (p for p in source.rglob("*") if p.is_file()), key=lambda p: p.relative_to(source).as_posix()
    )
    paths = [p for p in all_paths if p.name.endswith(PLAIN + LINES) and not p.name.startswith(TERMS)]
    if not paths:
        other = sorted({s for s in UNREAD if any(p.name.endswith(s) for p in all_paths)})
        unread_note = f"; it has {', '.join(other)}" if other else ""
        raise UsageError(
            f"no {', '.join(PLAIN + LINES)} in it{unread_note}", where=source, fix=_suggest_fix(*other)
        )
    return paths


def read_dataset_pin(source: Path) -> dict[str, Any]:
    """Return the repository, commit and licence of the dataset that ``enginix fetch`` wrote the texts from.

    The source is the dataset's directory, one inside it, or a file there; other sources give an empty pin.
    Every file that is read must be the pinned one, so that the manifest's statement is true.

    Raises:
        ModelError: a file is not the pinned one, or was not pinned.
        ManifestError: a manifest that cannot be read.
    """
    # The path is not resolved: a store path may hold links, whose targets lie outside of the dataset.
    source = Path(os.path.abspath(source))
    root = next((d for d in (source, *source.parents) if (d / manifest.MANIFEST_FILE).is_file()), None)
    if root is None:
        return {}
    dataset_manifest = manifest.read_manifest(root)
    if dataset_manifest.artefact != "dataset":
        return {}
    pinned = dataset_manifest.inputs.get("files")
    for path in list_text_files(source):
        name = path.relative_to(root).as_posix()
        if not isinstance(pinned, dict) or pinned.get(name) != sha256_file(path):
            raise ModelError(
                f"{name} differs from the file that the dataset's lock pins",
                where=root,
                fix="fetch it again: enginix fetch LOCK -o DIR",
            )
    return {"dataset": {key: dataset_manifest.inputs.get(key) for key in ("repo", "revision", "license")}}


def hash_text_files(source: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file, or over names and SHA-256 of a directory's files; and their number."""
    paths = list_text_files(source)
    if source.is_file():
        return sha256_file(source), 1
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{sha256_file(path)}  {path.relative_to(source).as_posix()}\n".encode())
    return total.hexdigest(), len(paths)


def read_documents(source: Path, field: str, render: Render) -> Iterator[Document]:
    """Yield every document in order.

    Plain text is cut at blank lines into pieces of about 4000 characters, so that a draw covers a whole
    book. A line of JSONL is an object with ``field``: a string, or a list of chat messages ({"role",
    "content"}), which ``render`` turns into text.

    Raises:
        UsageError: no files, a line without the field, more text than fits in memory.
        ModelError: a file that is not UTF-8, not JSON, or a damaged gzip file.
    """
    length = 0
    for path in list_text_files(source):
        for document in _read_text_file(path, field, render):
            length += len(document.text)
            if length > LONGEST:
                raise UsageError(
                    f"more than {LONGEST >> 30} Gi characters", where=source, fix="pass fewer files"
                )
            yield document


def _read_text_file(path: Path, field: str, render: Render) -> Iterator[Document]:
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as f:
            if path.name.endswith(LINES):
                for number, line in enumerate(f, 1):
                    if line.strip():
                        yield _parse_line(line, field, render, f"{path}:{number}")
            else:
                yield from _split_pieces(f)
    except UnicodeDecodeError as e:
        raise ModelError("not UTF-8", where=path, fix="convert it to UTF-8") from e
    except (OSError, EOFError, zlib.error) as e:
        raise ModelError(f"cannot be read: {e}", where=path, fix="pass a readable file") from e


def _split_pieces(lines: Any) -> Iterator[Document]:
    piece = ""
    for line in lines:
        piece += line
        if not line.strip() and len(piece) >= PIECE:
            if piece.strip():
                yield Document(piece.strip())
            piece = ""
        elif len(piece) >= 8 * PIECE:  # a text without blank lines
            yield Document(piece.strip())
            piece = ""
    if piece.strip():
        yield Document(piece.strip())


def _parse_line(line: str, field: str, render: Render, where: str) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ModelError(f"not JSON: {e}", where=where, fix="one JSON object a line") from e
    if not isinstance(row, dict) or field not in row:
        keys = ", ".join(sorted(map(str, row)))[:200] if isinstance(row, dict) else "no object"
        raise UsageError(
            f"no field {field!r}; it has: {keys}", where=where, fix="name the field with --field"
        )
    value = row[field]
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise ModelError("half a surrogate pair is not valid text", where=where, fix="correct it") from e
    if isinstance(value, str) and value.strip():
        return Document(value)
    if isinstance(value, list) and value and all(_is_message(m) for m in value):
        return Document(render(value), is_rendered=True)
    raise UsageError(
        f"field {field!r} is neither text nor a list of messages with role and content",
        where=where,
        fix="correct the line, or name another field with --field",
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(k), str) for k in ("role", "content"))


def _suggest_fix(*suffixes: str) -> str:
    if any(s in UNREAD for s in suffixes):
        return "write the texts as JSONL, one object a line (for Parquet: DuckDB, `datasets` or pandas do)"
    return "pass text (.txt), JSONL (.jsonl), or a directory of them"
