"""Select the files of a lock: weights in safetensors and the files that go with them, or a dataset's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from enginix.errors import LockError
from enginix.hub import paths
from enginix.hub.api import RemoteFile
from enginix.hub.lock import RepoType, Selection
from enginix.hub.repository_layout import explain_no_weights
from enginix.model.tokenizer_files import TOKENIZER_FILES

# Patterns match the whole path, and * crosses directories, as huggingface_hub's do.
TERMS = ("LICENSE*", "LICENCE*", "NOTICE*")
INCLUDE = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "*.txt",
    *TOKENIZER_FILES,
    *TERMS,
    "USE_POLICY*",
)
# Copies of the same weights for other software, and hidden files.
EXCLUDE = (".*", "*/.*", "original/*", "metal/*", "onnx/*", "openvino/*", "coreml/*", "runs/*")
# The files of a dataset that calibration reads (enginix.quantize.calibration_text), and its terms.
TEXT = ("*.jsonl", "*.jsonl.gz", "*.ndjson", "*.txt", "*.txt.gz")
DATASET = (*TEXT, *TERMS)
# Mistral's own layout, beside the Transformers one.
TWIN = "consolidated*.safetensors"


@dataclass(frozen=True)
class ChosenFiles:
    """The selected files, and notes about the others."""

    files: tuple[RemoteFile, ...]
    notes: tuple[str, ...]


def choose_files(
    files: Sequence[RemoteFile], select: Selection, repo: str, type_: RepoType = "model"
) -> ChosenFiles:
    """Select the files that the patterns match.

    Raises:
        LockError: a pattern names a pickle, no file is left, a model has no weights, or a dataset no text.
    """
    notes: list[str] = []
    exclude = select.exclude
    if not select.include:
        exclude = (*exclude, *EXCLUDE)
        if any(fnmatchcase(f.path, "model*.safetensors") for f in files):
            exclude = (*exclude, TWIN)
    include = select.include or (DATASET if type_ == "dataset" else INCLUDE)
    chosen = []
    for f in files:
        if not _matches_any(f.path, include) and not (select.remote_code and f.path.endswith(".py")):
            continue
        if _matches_any(f.path, exclude) or paths.is_reserved(f.path):
            continue
        if f.path.endswith(".py") and not select.remote_code:
            notes.append(f"{f.path} left out: code of the repository; --remote-code pins it by its hash")
            continue
        chosen.append(f)
    if select.include and (pickles := [f.path for f in chosen if paths.is_pickle(f.path)]):
        raise LockError(
            f"{pickles[0]} is in a pickle format, which can run code when it is read",
            where=repo,
            fix="lock a repository with safetensors; --include only files that are not pickles",
        )
    if type_ == "dataset" and not select.include and not any(map(_is_text, chosen)):
        raise LockError(
            _explain_no_text(files),
            where=repo,
            fix="lock a dataset that has JSONL or text; or write it as JSONL (DuckDB and pandas do) "
            "and pass that file: mkCalibration { text = ./data.jsonl; }, enginix calibrate --text",
        )
    if not chosen:
        raise LockError("no file is left", where=repo, fix="look at --include and --exclude")
    if type_ == "model" and not select.include and not any(f.path.endswith(".safetensors") for f in chosen):
        raise LockError(
            explain_no_weights(files), where=repo, fix="lock a repository with safetensors, or use --include"
        )
    return ChosenFiles(tuple(chosen), tuple(notes))


def _is_text(f: RemoteFile) -> bool:
    """Return whether calibration reads a file; the terms of a dataset are not part of its text."""
    return _matches_any(f.path, TEXT) and not _matches_any(f.path.rpartition("/")[2], TERMS)


def _explain_no_text(files: Sequence[RemoteFile]) -> str:
    others = [
        f.path for f in files if f.path.endswith((".parquet", ".arrow", ".csv", ".json", ".zst", ".zip"))
    ]
    return f"no JSONL and no text in it; there is {others[0]}" if others else "no JSONL and no text in it"


def _matches_any(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, p) or (p.endswith("/") and path.startswith(p)) for p in patterns)
