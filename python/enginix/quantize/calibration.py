"""Calibration data: one file of token ids that records its sources.

A safetensors file with one tensor ``tokens`` (int32 [size, sequence length], no padding) and a JSON header
under the metadata key ``enginix``. The bytes depend on texts, tokenizer, size, sequence length and seed
alone.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginix import __version__, manifest
from enginix.errors import ModelError, UsageError
from enginix.files import sha256_file
from enginix.letter_case import camel_case_keys
from enginix.model.jsonfile import refuse_other_artefact
from enginix.model.safetensors import read_header
from enginix.output_path import require_absent
from enginix.quantize import calibration_text
from enginix.tables import load_table
from enginix.wording import first_line
from enginix.work_directory import new_directory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Tokens = npt.NDArray[np.int32]

CALIBRATION_FILE = "calibration.safetensors"
CALIBRATION_KEY = "enginix"
TENSOR = "tokens"
CALIBRATION_FORMAT = 1
LONGEST = 1 << 20
MOST_DEFAULT_ROWS = 256
# Rows that enginix quantize takes at a time.
ROWS_A_BATCH = 8


@dataclass(frozen=True)
class Recipe:
    """The parameters by which texts become rows.

    Attributes:
        size: rows; None for as many as the text fills: at most 256, whole batches of 8 if it fills one.
        sequence_length: tokens a row.
        seed: determines the order in which documents are drawn.
        field: the field of a JSONL line that holds the text.
    """

    size: int | None = None
    sequence_length: int = 512
    seed: int = 1234
    field: str = "text"

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as header and manifest hold it."""
        return dict(camel_case_keys(asdict(self)))

    def __post_init__(self) -> None:
        for name in ("size", "sequence_length"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LONGEST:
                raise UsageError(
                    f"{name.replace('_', ' ')} {value} is not between 1 and {LONGEST}",
                    fix=f"pass --{name.replace('_', '-')} between them",
                )


@dataclass(frozen=True)
class Calibration:
    """Token ids and their sources.

    Attributes:
        tokens: int32 [size, sequence length].
        about: the header: recipe, digests of text and tokenizer.
        sha256: of the whole file.
    """

    tokens: Tokens
    about: dict[str, Any]
    sha256: str

    def identity(self) -> dict[str, Any]:
        """Return the entry of a manifest's inputs."""
        return {"sha256": self.sha256, **self.about}


def find_default_text() -> tuple[Path, dict[str, Any]]:
    """Return the text that ships with enginix and its row of calibration.json; check the text's hash.

    Raises:
        ModelError: the file is not the one that the table pins.
    """
    data = Path(__file__).parent.parent / "data" / "quantization"
    rows = load_table("calibration")
    name = rows["default"]
    row = rows["texts"][name]
    path = data / row["file"]
    if not path.exists() or sha256_file(path) != row["sha256"]:
        raise ModelError("not the file that calibration.json pins", where=path, fix="install enginix again")
    return path, {"name": name, "licence": row["licence"]}


def hash_tokenizer_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each tokenizer file in ``directory`` except config.json.

    Raises:
        ModelError: no directory, or no tokenizer in it.
    """
    if not directory.is_dir():
        raise ModelError("no such directory", where=directory, fix="pass a model directory")
    digests = {
        name: sha256_file(directory / name)
        for name in load_table("quantize")["tokenizerFiles"]
        if name != "config.json" and (directory / name).is_file()
    }
    if not digests.keys() & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise ModelError("no tokenizer in it", where=directory, fix="pass a model with tokenizer.json")
    return digests


def draw_rows(tokenizer: Any, documents: Iterable[calibration_text.Document], recipe: Recipe) -> Tokens:
    """Return rows of token ids: documents in an order drawn from the seed, joined and cut into equal rows.

    A document ends with the end-of-text token, if the tokenizer has one. Each row starts with the token that
    starts a prompt, if the tokenizer adds one. Rows are not padded: padding would be calibrated as text.

    Raises:
        UsageError: the text is too short.
    """
    import numpy as np

    every = list(documents)
    order = list(range(len(every)))
    random.Random(recipe.seed).shuffle(order)
    start = _find_start_tokens(tokenizer)
    width = recipe.sequence_length - len(start)
    if width < 1:
        raise UsageError("a row holds no text", fix="raise --sequence-length")
    end = tokenizer.eos_token_id
    most = recipe.size or MOST_DEFAULT_ROWS
    needed = most * width
    stream: list[int] = []
    for index in order:
        document = every[index]
        stream += tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        if end is not None and not document.is_rendered:
            stream.append(end)
        if len(stream) >= needed:
            break
    rows = min(most, len(stream) // width)
    if rows < (recipe.size or 1):
        raise _make_too_short_error(len(every), len(stream), rows, recipe, len(start))
    if recipe.size is None and rows > ROWS_A_BATCH:
        rows -= rows % ROWS_A_BATCH
    body = np.asarray(stream[: rows * width], np.int32).reshape(rows, width)
    return np.concatenate([np.tile(np.asarray(start, np.int32), (rows, 1)), body], axis=1)


def _make_too_short_error(documents: int, tokens: int, rows: int, recipe: Recipe, start: int) -> UsageError:
    many = "document has" if documents == 1 else "documents have"
    fix = "pass more text"
    if rows:
        fix += f", or --size {rows} (mkCalibration: size = {rows})"
    elif tokens:
        length = tokens // (recipe.size or 1) + start
        if length > start:
            fix += f", or --sequence-length {length} (mkCalibration: sequenceLength = {length})"
    return UsageError(
        f"{documents} {many} {tokens} tokens: {rows} rows of {recipe.sequence_length}, and "
        f"{recipe.size or 'at least 1'} requested",
        fix=fix,
    )


def _find_start_tokens(tokenizer: Any) -> list[int]:
    first = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"][:1]
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and first == [bos] else []


def dump_calibration(tokens: Tokens, about: dict[str, Any]) -> bytes:
    """Return the bytes of a calibration file."""
    from safetensors.numpy import save

    header = json.dumps(about, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    data: bytes = save({TENSOR: tokens}, {CALIBRATION_KEY: header})
    return data


def make_calibration(model: Path, out: Path, source: Path | None, recipe: Recipe) -> Calibration:
    """Write ``calibration.safetensors`` and ``enginix.json`` into a new directory ``out``.

    Args:
        model: a directory with a tokenizer; weights are not needed.
        source: text, JSONL or a directory of them; None for the text that ships with enginix.

    Raises:
        ModelError, UsageError: as :func:`calibration_text.read_documents` and :func:`draw_rows`; a
            tokenizer that cannot be read; before anything is read, an ``out`` that exists.
    """
    require_absent(out)
    refuse_other_artefact(model)
    tokenizer_files = hash_tokenizer_files(model)
    text_source: dict[str, Any] = {}
    if source is None:
        source, text_source = find_default_text()
    else:
        text_source = calibration_text.read_dataset_pin(source)
    digest, count = calibration_text.hash_text_files(source)
    tokenizer = load_tokenizer(model)

    def render(messages: list[dict[str, Any]]) -> str:
        if not tokenizer.chat_template:
            raise UsageError(
                "the tokenizer has no chat template", where=model, fix="name a field of plain text"
            )
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as e:  # a template is a program of the model and may raise anything
            raise UsageError(
                f"the chat template refuses messages: {first_line(e)[:200]}",
                where=model,
                fix="correct the messages, or name a field of plain text",
            ) from e

    tokens = draw_rows(tokenizer, calibration_text.read_documents(source, recipe.field, render), recipe)
    recipe = replace(recipe, size=len(tokens))
    about = {
        "format": CALIBRATION_FORMAT,
        "recipe": recipe.as_json(),
        "text": {"sha256": digest, "files": count, **text_source},
        "tokenizer": tokenizer_files,
    }
    data = dump_calibration(tokens, about)
    calibration = Calibration(tokens, about, hashlib.sha256(data).hexdigest())
    with new_directory(out) as partial:
        (partial / CALIBRATION_FILE).write_bytes(data)
        import tokenizers
        import transformers

        manifest.Manifest(
            artefact="calibration",
            name="calibration",
            inputs={"text": about["text"], "tokenizer": tokenizer_files},
            options=recipe.as_json(),
            tools={
                "enginix": __version__,
                "tokenizers": tokenizers.__version__,
                "transformers": transformers.__version__,
            },
            results={"sha256": calibration.sha256, "tokens": int(tokens.size)},
        ).write(partial)
    return calibration


def load_tokenizer(directory: Path) -> Any:
    """Return the tokenizer of a model directory; no code of the model is run.

    Raises:
        ModelError: transformers cannot read it.
        MachineError: transformers is not installed.
    """
    from enginix.quantize.library_imports import import_library

    transformers = import_library("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True, use_fast=True
        )
    except Exception as e:
        what = f"the tokenizer cannot be read: {first_line(e)}"
        raise ModelError(what, where=directory, fix="pass a complete model") from e


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file, or the one in a directory.

    Raises:
        ModelError: missing, or not a calibration file of this format.
    """
    path = path / CALIBRATION_FILE if path.is_dir() else path
    again = "make it: `enginix calibrate MODEL -o DIR`, in a new directory"
    if not path.is_file():
        raise ModelError("no such calibration file", where=path, fix=again)
    header = read_header(path)
    info = header.tensors.get(TENSOR)
    if list(header.tensors) != [TENSOR] or info is None or info.dtype != "I32" or len(info.shape) != 2:
        raise ModelError(f"not one tensor {TENSOR!r} of int32 [rows, tokens]", where=path, fix=again)
    from safetensors.numpy import load_file

    tokens = load_file(path)[TENSOR]
    try:
        about = json.loads(header.metadata.get(CALIBRATION_KEY, ""))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("format") != CALIBRATION_FORMAT:
        raise ModelError("it has no header of a calibration file", where=path, fix=again)
    if not isinstance(about.get("tokenizer"), dict) or not isinstance(about.get("text"), dict):
        raise ModelError("its header names no text or no tokenizer", where=path, fix=again)
    if tokens.size == 0 or int(tokens.min()) < 0:
        raise ModelError("empty, or with negative token ids", where=path, fix=again)
    return Calibration(tokens, about, sha256_file(path))
