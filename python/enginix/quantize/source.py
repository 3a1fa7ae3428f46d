"""The model before it is quantized: checks of its configuration and headers, without reading a weight."""

from __future__ import annotations

import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.console import format_bytes
from enginix.errors import MachineError, ModelError, UsageError
from enginix.files import find_existing_parent
from enginix.model import ModelWeights, open_weights
from enginix.model.class_defaults import fill_absent_sizes
from enginix.model.context_length import read_model_context
from enginix.model.family_rows import list_family_rows
from enginix.model.jsonfile import read_object
from enginix.model.other_layouts import require_model_config
from enginix.model.quantization import SIDECAR
from enginix.quantize.calibration import Calibration, hash_tokenizer_files
from enginix.tables import load_table

FLOATS = ("BF16", "F16", "F32")
# Matrices of a decoder layer; routers and gates of experts stay as they are in every recipe of ModelOpt's.
LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")
UNQUANTIZED_MODULES = re.compile(r"\.(gate|router|shared_expert_gate)$")
# Only these files define the meaning of token ids; the others are settings.
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class SourceModel:
    """The parts of a model's description that quantization uses.

    Attributes:
        config: the parsed config.json.
        prefix: what names of its tensors may lack, and those of an export do not.
        matrices: module → shape of each matrix in the layers, all of which will be quantized.
        parameters: elements of all tensors.
        bytes: of all tensors.
        experts: whether it is a mixture of experts.
    """

    directory: Path
    config: dict[str, Any]
    prefix: str
    weights: ModelWeights
    matrices: dict[str, tuple[int, ...]]
    parameters: int
    bytes: int
    experts: bool

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])


def read_source_model(directory: Path) -> SourceModel:
    """Read ``config.json`` and the weights' headers.

    Raises:
        ModelError: incomplete or damaged, or not in a float format.
        UsageError: quantized already.
    """
    if not directory.is_dir():
        raise ModelError("no such directory", where=directory, fix="pass a model directory")
    where = str(directory)
    config = read_object(directory / "config.json")
    require_model_config(config, where)
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ModelError(
            "config.json names no architecture", where=where, fix="pass the model as it is on the Hub"
        )
    if (directory / SIDECAR).exists() or config.get("quantization_config"):
        raise UsageError(
            "the model is quantized already", where=where, fix="pass the model that it was quantized from"
        )
    if config.get("auto_map") and not _transformers_has(names[0]):
        raise UsageError(
            f"transformers has no {names[0]}, and the model's own code (auto_map) is never run",
            where=where,
            fix="use a model whose architecture transformers has",
        )
    weights = open_weights(directory)
    for tensor in weights.tensors.values():
        if tensor.dtype not in FLOATS and len(tensor.shape) > 1:
            raise ModelError(
                f"tensor {tensor.name!r} is {tensor.dtype}", where=where, fix="pass an unquantized model"
            )
    row = list_family_rows().get(names[0], {})
    # Columns are inputs, however the model stores a matrix.
    transposed = bool(row.get("layout", {}).get("transposed"))
    matrices = {
        name.removesuffix(".weight"): info.shape[::-1] if transposed else info.shape
        for name, info in weights.tensors.items()
        if name.endswith(".weight")
        and len(info.shape) > 1
        and LAYER.search(name)
        and not UNQUANTIZED_MODULES.search(name.removesuffix(".weight"))
    }
    if not matrices:
        raise ModelError("no matrices in layers found", where=where, fix="pass a decoder language model")
    filled = fill_absent_sizes(config)
    sizes = [math.prod(t.shape) for t in weights.tensors.values()]
    return SourceModel(
        directory=directory,
        config=config,
        prefix=row.get("prefix", ""),
        weights=weights,
        matrices=matrices,
        parameters=sum(sizes),
        bytes=sum(t.end - t.begin for t in weights.tensors.values()),
        experts=any(
            isinstance(filled.get(k), int) and filled[k] > 0
            for k in ("num_experts", "num_local_experts", "n_routed_experts")
        ),
    )


def _transformers_has(architecture: str) -> bool:
    """Return whether the installed transformers has the class, so that loading needs no auto_map."""
    import transformers

    return isinstance(getattr(transformers, architecture, None), type)


def check_calibration(model: SourceModel, data: Calibration, where: str) -> None:
    """Check calibration data against the model's vocabulary, context and tokenizer.

    Raises:
        UsageError: made for another model.
    """
    name = model.directory.resolve().name
    fix = f"make it for this model: enginix calibrate {model.directory} -o ./calibration-{name}"
    vocabulary = fill_absent_sizes(model.config).get("vocab_size")
    if isinstance(vocabulary, int) and int(data.tokens.max()) >= vocabulary:
        raise UsageError(
            f"token {int(data.tokens.max())} is beyond the model's vocabulary of {vocabulary}",
            where=where,
            fix=fix,
        )
    context = read_model_context(model.config)
    if context is not None and data.tokens.shape[1] > context:
        raise UsageError(
            f"rows of {data.tokens.shape[1]} tokens, but the model's context is {context}",
            where=where,
            fix=f"{fix} --sequence-length {context}",
        )
    model_digests, calibration_digests = hash_tokenizer_files(model.directory), data.about["tokenizer"]
    common_files = [name for name in VOCABULARY if name in model_digests and name in calibration_digests]
    if not common_files:
        raise UsageError("cannot verify that this tokenizer belongs to the model", where=where, fix=fix)
    for name in common_files:
        if model_digests[name] != calibration_digests[name]:
            raise UsageError(
                f"made with another {name}: the same ids mean other tokens here", where=where, fix=fix
            )


def check_machine(model: SourceModel, out: Path, device: str) -> None:
    """Check memory and disk before a weight is read.

    Raises:
        MachineError: too little memory or free disk space.
    """
    free = _available_memory()
    percent = load_table("quantize")["memory"]["percentOfWeights"]["cpu" if device == "cpu" else "cuda"]
    needed = model.bytes * int(percent) // 100
    if free is not None and needed > free:
        raise MachineError(
            f"{format_bytes(needed)} of memory are needed, {format_bytes(free)} are free",
            fix="use a machine with more memory" + (", or --device cuda" if device == "cpu" else ""),
        )
    parent = find_existing_parent(Path(os.path.abspath(out)).parent)
    # A format stores at least 4 bits of each weight of a matrix; other tensors keep their size.
    matrices = [model.weights.tensors[f"{name}.weight"] for name in model.matrices]
    least_bytes = model.bytes - sum(m.nbytes - math.prod(m.shape) // 2 for m in matrices)
    disk = shutil.disk_usage(parent).free
    if disk < least_bytes:
        raise MachineError(
            f"the result takes {format_bytes(least_bytes)} or more, {format_bytes(disk)} are free",
            where=parent,
            fix="free disk space, or choose another -o",
        )


def _available_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
