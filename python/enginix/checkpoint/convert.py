"""Hugging Face model → TensorRT-LLM checkpoint: planned from headers, then written in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.checkpoint import config as ckpt
from enginix.checkpoint.describe import describe
from enginix.checkpoint.formats import format_of
from enginix.checkpoint.formats.base import bias_parts
from enginix.checkpoint.formats.plain import caster
from enginix.checkpoint.layout import Layout, Linear, Vector
from enginix.checkpoint.mapping import Mapping, check
from enginix.checkpoint.parts import Output, Reader, Rows
from enginix.checkpoint.source import FLOATS, Source
from enginix.checkpoint.write import write_ranks
from enginix.errors import ModelError, UsageError
from enginix.files import dump_json, new_directory, write_text
from enginix.model import ModelConfig, Weights, open_weights


@dataclass(frozen=True)
class Options:
    """What a conversion may be asked for.

    Attributes:
        dtype: of everything unquantized; None keeps the model's (float32 becomes float16, as TensorRT-LLM
            does).
        parallel_embedding: cut the embedding over tensor parallel ranks, along ``embedding_sharding_dim``
            (0 vocabulary, 1 hidden).
    """

    dtype: str | None = None
    mapping: Mapping = field(default_factory=Mapping)
    parallel_embedding: bool = False
    embedding_sharding_dim: int = 0


@dataclass(frozen=True)
class Plan:
    """A conversion that is known to work before a weight is read, but for the values of the weights."""

    model: ModelConfig
    options: Options
    config: MappingType[str, Any]
    ranks: tuple[tuple[Output, ...], ...]
    notes: tuple[str, ...]


def _dtype(model: ModelConfig, weights: Weights, asked: str | None) -> str:
    if asked is not None:
        if asked not in ckpt.DTYPES:
            raise UsageError(f"--dtype {asked!r} is unknown", fix=f"one of: {', '.join(ckpt.DTYPES)}")
        return asked
    found = model.dtype
    if found is None:
        embedding = weights.tensors.get("model.embed_tokens.weight")
        codes = {v: k for k, v in ckpt.DTYPES.items()}
        found = codes.get(embedding.dtype, "float16") if embedding else "float16"
    return "float16" if found == "float32" else found


def _vector(module: Vector, dtype: str, source: Source) -> Output:
    info = source.tensor(module.module, "weight", FLOATS, (module.size,))
    size = info.itemsize
    part = Rows(info, size, (0, module.size), (0, size), caster(info, dtype))
    return Output(f"{module.name}.weight", dtype, (module.size,), (part,))


def _linear(module: Linear, config: ckpt.CheckpointConfig, source: Source) -> list[Output]:
    number_format = format_of(config.quantization.algorithm(module.name) if module.quantizable else None)
    spec, parts = number_format.spec(module, config), number_format.parts(module, config, source)
    outputs = [Output(f"{module.name}.{leaf}", *spec[leaf], parts[leaf]) for leaf in spec]
    if module.bias:
        dtype = ckpt.DTYPES[config.dtype]
        outputs.append(Output(f"{module.name}.bias", dtype, (module.out,), bias_parts(module, dtype, source)))
    return outputs


def _rank(rank: int, layout: Layout, source: Source) -> tuple[Output, ...]:
    outputs: list[Output] = []
    for module in layout.rank(rank):
        if isinstance(module, Vector):
            outputs.append(_vector(module, ckpt.DTYPES[layout.config.dtype], source))
        elif isinstance(module, Linear):
            outputs.extend(_linear(module, layout.config, source))
    return tuple(outputs)


def plan(directory: Path, options: Options) -> Plan:
    """Reads configuration and headers and decides every byte's origin.

    Raises:
        ModelError: the model is damaged, incomplete, or cannot be expressed.
        UsageError: the options do not fit the model.
    """
    model = ModelConfig.read(directory)
    check(model, options.mapping)
    weights = open_weights(directory)
    raw = describe(
        model,
        _dtype(model, weights, options.dtype),
        options.mapping,
        {},
        parallel_embedding=options.parallel_embedding,
        embedding_sharding_dim=options.embedding_sharding_dim,
    )
    config = ckpt.parse(raw, ckpt.FILE)
    layout = Layout(config)
    with Reader() as reader:
        source = Source(weights, reader, tied=model.tie_word_embeddings)
        ranks = tuple(_rank(r, layout, source) for r in options.mapping.ranks())
        if unused := source.unused():
            raise ModelError(
                f"tensor {unused[0]!r} has no place in a {model.architecture} checkpoint"
                + (f" ({len(unused)} such tensors)" if len(unused) > 1 else ""),
                where=str(directory),
                fix="config.json and weights disagree; pass those of one revision",
            )
    return Plan(model, options, raw, ranks, ())


def inputs(directory: Path, weights_files: list[Path]) -> dict[str, Any]:
    """What identifies the model: its manifest's repository and revision, or digests."""
    if (directory / manifest.FILE).exists():
        found = manifest.read(directory)
        known = {**found.inputs, "artefact": found.artefact, "name": found.name}
        return {"model": known}
    files: dict[str, Any] = {}
    for name in ("config.json", "hf_quant_config.json", "model.safetensors.index.json"):
        path = directory / name
        if path.exists():
            files[name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return {"model": {"files": files}}


def convert(directory: Path, out: Path, options: Options) -> Plan:
    """Plans and writes a checkpoint directory: ``config.json``, ``rank{r}.safetensors``, ``enginix.json``."""
    planned = plan(directory, options)
    with new_directory(out) as partial:
        size = write_ranks(partial, planned.ranks)
        write_text(partial / ckpt.FILE, dump_json(planned.config))
        _manifest(planned, size).write(partial)
    return planned


def _manifest(planned: Plan, size: int) -> manifest.Manifest:
    model, options = planned.model, planned.options
    return manifest.Manifest(
        artefact="checkpoint",
        name=model.directory.resolve().name,
        model={
            "architecture": model.architecture,
            "layers": model.num_layers,
            "hiddenSize": model.hidden_size,
            "vocabSize": model.vocab_size,
            "quantization": planned.config["quantization"]["quant_algo"],
            "kvCacheQuantization": planned.config["quantization"]["kv_cache_quant_algo"],
        },
        inputs=inputs(model.directory, []),
        options={
            "converter": "enginix",
            "dtype": planned.config["dtype"],
            "tensorParallel": options.mapping.tensor_parallel,
            "pipelineParallel": options.mapping.pipeline_parallel,
            "expertParallel": options.mapping.expert_parallel,
        },
        results={"bytes": size, "notes": list(planned.notes)},
    )
