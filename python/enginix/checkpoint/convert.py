"""Hugging Face model → TensorRT-LLM checkpoint: planned from headers, then written in one pass."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.checkpoint import config as ckpt
from enginix.checkpoint.byte_sources import (
    COPY,
    BytePart,
    GeneratedBytes,
    HeaderReader,
    MatrixRows,
    OutputTensor,
    SourceFileReader,
    ZeroBytes,
)
from enginix.checkpoint.describe import describe_checkpoint_config
from enginix.checkpoint.formats import KV_LEAVES, format_of, list_module_tensors
from enginix.checkpoint.formats.fp8 import pack_floats
from enginix.checkpoint.formats.nvfp4 import find_unaligned
from enginix.checkpoint.formats.plain import add_offset, make_bias_parts, make_caster
from enginix.checkpoint.latent_attention import absorb_keys
from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.mapping import (
    CheckpointMapping,
    check_family_options,
    check_node_sizes,
    check_parallelism,
    check_pipeline_support,
)
from enginix.checkpoint.products import project_rows
from enginix.checkpoint.rank_modules import (
    AbsorbedQueries,
    KvCacheModule,
    LinearModule,
    SlicedTensor,
    VectorModule,
)
from enginix.checkpoint.resolve import ResolvedQuantization, resolve_quantization
from enginix.checkpoint.source_tensors import (
    FLOATS,
    EmbeddingProjection,
    SourceNames,
    SourceTensors,
    cut_vector,
    name_source_tensors,
)
from enginix.checkpoint.tensor_errors import explain_unexpected
from enginix.checkpoint.write import write_ranks
from enginix.digests import SourceWatch
from enginix.errors import ModelError, UsageError
from enginix.files import dump_json, write_text
from enginix.model import ModelConfig, ModelWeights, open_weights
from enginix.model.attention_window import describe_windows
from enginix.model.config import read_model_config
from enginix.model.identity import identify_model
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.model.safetensors import SAFETENSORS_DTYPES
from enginix.output_path import require_absent
from enginix.work_directory import new_directory

NVFP4_FORMS = ("auto", "trtllm", "modelopt")
ON_LOAD = ("FP8_PER_CHANNEL_PER_TOKEN",)


@dataclass(frozen=True)
class ConvertOptions:
    """Options of a conversion.

    Attributes:
        dtype: of everything unquantized; None keeps the model's (float32 becomes float16, as TensorRT-LLM
            does).
        parallel_embedding: cut the embedding over tensor parallel ranks, along ``embedding_sharding_dim``
            (0 vocabulary, 1 hidden).
        nvfp4_form: one of the two forms that TensorRT-LLM reads; ``auto`` takes its own, or ModelOpt's if the
            scales are not whole tiles.
        quantize: quantize an unquantized model while it is converted; see ``ON_LOAD``.
        kv_cache: ``FP8`` adds an FP8 KV cache to a model without one, with scales of 1.0 where scales are
            missing.
        kind: kind of engine that must load the checkpoint: ``tensorrt`` refuses models that TensorRT-LLM's
            class does not support; None allows any that the reference executor supports.
        variant: generation of a model whose config.json does not tell it (Baichuan, ChatGLM).
    """

    dtype: str | None = None
    mapping: CheckpointMapping = field(default_factory=CheckpointMapping)
    parallel_embedding: bool = False
    embedding_sharding_dim: int = 0
    nvfp4_form: str = "auto"
    quantize: str | None = None
    kv_cache: str | None = None
    kind: str | None = None
    variant: str | None = None


@dataclass(frozen=True)
class ConversionSpec:
    """A conversion that was checked before a weight is read; only values of weights can still make it fail.

    Attributes:
        config: content of ``config.json``.
        quant_cfg: content of ``quant_cfg.json``, or None.
        ranks: the tensors of each rank.
        notes: notes for the user: missing scales, attention windows that the checkpoint cannot hold.
    """

    model: ModelConfig
    options: ConvertOptions
    config: MappingType[str, Any]
    quant_cfg: MappingType[str, Any] | None
    nvfp4_form: str
    ranks: tuple[tuple[OutputTensor, ...], ...]
    notes: tuple[str, ...]


def _choose_dtype(model: ModelConfig, weights: ModelWeights, requested: str | None, notes: list[str]) -> str:
    if requested is not None:
        if requested not in ckpt.DTYPES:
            raise UsageError(f"--dtype {requested!r} is unknown", fix=f"one of: {', '.join(ckpt.DTYPES)}")
        return requested
    model_dtype = model.dtype
    if model_dtype is None:
        names = name_source_tensors(model)
        embedding = weights.tensors.get(names.locate(weights.tensors, names.embedding, "weight"))
        codes = {v: k for k, v in ckpt.DTYPES.items()}
        model_dtype = codes.get(embedding.dtype, "float16") if embedding else "float16"
    if model_dtype == "float32":
        notes.append(
            "the model is float32; float16 is written, as TensorRT-LLM does (--dtype says otherwise)"
        )
        return "float16"
    return model_dtype


class _OutputBuilder:
    """Builds the outputs of each module."""

    def __init__(
        self, layout: CheckpointLayout, source: SourceTensors, resolved: ResolvedQuantization, form: str
    ) -> None:
        self.layout, self.source, self.resolved, self.form = layout, source, resolved, form
        self.config = layout.config
        self.dtype = ckpt.DTYPES[self.config.dtype]
        self.default_kv_scales: set[str] = set()

    def rank(self, rank: int) -> tuple[OutputTensor, ...]:
        outputs: list[OutputTensor] = []
        for module in self.layout.rank(rank):
            algorithm = self.resolved.algorithms.get(module.name)
            spec = list_module_tensors(module, self.config, algorithm, self.form)
            if isinstance(module, VectorModule):
                parts = {module.tensor_name: self.vector(module)}
            elif isinstance(module, LinearModule):
                parts = self.linear(module, algorithm)
            elif isinstance(module, SlicedTensor):
                parts = {module.name: self.sliced(module)}
            else:
                parts = self.kv_cache(module) if spec else {}
            outputs.extend(OutputTensor(name, *spec[name], parts[name]) for name in spec)
        return tuple(outputs)

    def vector(self, module: VectorModule) -> tuple[BytePart, ...]:
        info = self.source.tensor(module.module, module.leaf, FLOATS, (module.size,))
        transform = make_caster(info, self.dtype)
        if module.offset:
            transform = add_offset(info, self.dtype, module.offset)
        return (cut_vector(info, (0, module.size), transform),)

    def sliced(self, module: SlicedTensor) -> tuple[BytePart, ...]:
        info = self.source.tensor(module.module, module.leaf, FLOATS, module.source_shape)
        if isinstance(module, AbsorbedQueries):
            keys = self.source.tensor(module.keys.module, module.keys.leaf, FLOATS, module.keys.stored_shape)
            absorb = partial(absorb_keys, module, info, keys, self.dtype)
            return (GeneratedBytes(prod(module.shape) * SAFETENSORS_DTYPES[self.dtype], absorb),)
        stride, cast = info.itemsize * prod(module.source_shape[1:]), make_caster(info, self.dtype)
        return tuple(MatrixRows(info, stride, rows, (0, stride), cast) for rows in module.ranges)

    def projected(self, module: LinearModule, projection: EmbeddingProjection) -> tuple[BytePart, ...]:
        """Return the product of an embedding or a head with the projection beside it."""
        piece, is_embedding = module.groups[0][0], module.groups[0][0].module == self.source.names.embedding
        info = self.source.tensor(piece.module, piece.leaf, FLOATS, (piece.out, projection.width))
        shape = (piece.inp, projection.width) if is_embedding else (projection.width, piece.inp)
        matrix = projection.embedding if is_embedding else projection.head
        factor = self.source.tensor(matrix, "weight", FLOATS, shape)
        row, rows = piece.width * SAFETENSORS_DTYPES[self.dtype], piece.rows[1] - piece.rows[0]
        make = partial(project_rows, info, factor, piece, is_embedding, self.dtype)
        return (GeneratedBytes(rows * row, make), ZeroBytes(piece.pad * row))

    def linear(self, module: LinearModule, algorithm: str | None) -> dict[str, tuple[BytePart, ...]]:
        names = self.source.names
        if names.projection and module.groups[0][0].module in (names.embedding, names.head):
            return {f"{module.name}.weight": self.projected(module, names.projection)}
        leaves = format_of(algorithm, self.form).parts(module, self.config, self.source)
        if module.bias:
            leaves["bias"] = make_bias_parts(module, self.dtype, self.source)
        return {f"{module.name}.{leaf}": parts for leaf, parts in leaves.items()}

    def kv_cache(self, module: KvCacheModule) -> dict[str, tuple[BytePart, ...]]:
        import numpy as np

        scale = 0.0
        for name, leaf in zip(module.modules, ("k_scale", "v_scale"), strict=True):
            if not self.source.has(name, leaf):
                self.default_kv_scales.add(f"{name}.{leaf}")
            scale = max(scale, self.source.scale(name, leaf) if self.source.has(name, leaf) else 1.0)
        both = (scale, float(np.float32(1) / np.float32(scale)))
        return {f"{module.name}.{leaf}": (pack_floats([v]),) for leaf, v in zip(KV_LEAVES, both, strict=True)}


def _choose_nvfp4_form(
    requested: str, layout: CheckpointLayout, resolved: ResolvedQuantization, notes: list[str]
) -> str:
    if requested not in NVFP4_FORMS:
        raise UsageError(f"--nvfp4-form {requested!r} is unknown", fix=f"one of: {', '.join(NVFP4_FORMS)}")
    if requested != "auto":
        return requested
    unaligned = find_unaligned(layout.linears(), resolved.algorithms)
    if unaligned is None:
        return "trtllm"
    notes.append(
        f"{unaligned.name} is {unaligned.out} x {unaligned.inp} per rank, "
        "which is not a whole number of NVFP4 scale tiles: "
        "ModelOpt's form is written, which TensorRT-LLM pads on loading"
    )
    return "modelopt"


def derive_conversion_spec(
    directory: Path, options: ConvertOptions, *, headers_only: bool = False
) -> ConversionSpec:
    """Read configuration and headers, and determine the origin of every output byte.

    Args:
        headers_only: do not read the values of scales, either; such a specification shows whether a model can
            be converted, and must not be written.

    Raises:
        ModelError: the model is damaged, incomplete, or cannot be expressed.
        UsageError: the options do not fit the model.
    """
    model = read_model_config(directory, variant=options.variant)
    with limited_llmapi_advice(model.architecture):
        return _derive_model_spec(model, options, headers_only)


def _derive_model_spec(model: ModelConfig, options: ConvertOptions, headers_only: bool) -> ConversionSpec:
    directory = model.directory
    check_parallelism(model, options.mapping)
    if options.kind == "tensorrt" or "layout" in model.description:
        check_pipeline_support(model, options.mapping)
    if "layout" in model.description:
        check_family_options(model, options.mapping, options.quantize, options.kv_cache)
    check_node_sizes(options.mapping)
    if options.quantize not in (None, *ON_LOAD):
        raise UsageError(f"--quantize {options.quantize!r} is unknown", fix=f"one of: {', '.join(ON_LOAD)}")
    if options.kv_cache not in (None, "FP8"):
        raise UsageError(f"--kv-cache {options.kv_cache!r} is unknown", fix="--kv-cache FP8")
    weights, notes = open_weights(directory), _collect_model_notes(model)
    dtype = _choose_dtype(model, weights, options.dtype, notes)

    def description(keys: dict[str, Any]) -> dict[str, Any]:
        return describe_checkpoint_config(
            model,
            dtype,
            options.mapping,
            keys,
            parallel_embedding=options.parallel_embedding,
            embedding_sharding_dim=options.embedding_sharding_dim,
        )

    with HeaderReader() if headers_only else SourceFileReader() as reader:
        source = SourceTensors(weights, reader, name_source_tensors(model))
        layout = CheckpointLayout(ckpt.parse_checkpoint_config(description({}), ckpt.FILE))
        resolved = resolve_quantization(
            model.quantization, layout, source, on_load=options.quantize, kv_cache=options.kv_cache
        )
        raw = description(resolved.keys)
        layout = CheckpointLayout(ckpt.parse_checkpoint_config(raw, ckpt.FILE, resolved.quant_cfg))
        nvfp4_form = _choose_nvfp4_form(options.nvfp4_form, layout, resolved, notes)
        builder = _OutputBuilder(layout, source, resolved, nvfp4_form)
        ranks = tuple(builder.rank(r) for r in options.mapping.ranks())
        if unused := source.unused():
            what, fix = explain_unexpected(unused[0], model.architecture, len(unused), model.num_layers)
            raise ModelError(what, where=str(directory), fix=fix)
        if model.tie_word_embeddings and not headers_only:
            notes += _note_differing_head(weights, reader, name_source_tensors(model))
    if missing := builder.default_kv_scales:
        notes.append(f"{len(missing)} KV cache scales are missing ({min(missing)} …): 1.0 is written")
    return ConversionSpec(model, options, raw, resolved.quant_cfg, nvfp4_form, ranks, tuple(notes))


def _note_differing_head(weights: ModelWeights, reader: SourceFileReader, names: SourceNames) -> list[str]:
    """Return a note if a tied head is stored separately and differs from the embedding."""
    stored = weights.tensors
    embedding, head = (stored.get(names.locate(stored, m, "weight")) for m in (names.embedding, names.head))
    if embedding is None or head is None:
        return []
    length = min(COPY, embedding.nbytes, head.nbytes)
    first, second = (bytes(reader.read(t.path, t.begin, t.begin + length)) for t in (embedding, head))
    if first == second and embedding.dtype == head.dtype:
        return []
    return [
        f"tie_word_embeddings is true, but a different {names.head}.weight is stored: it is written, as "
        "transformers loads it; other software uses the embedding"
    ]


def _collect_model_notes(model: ModelConfig) -> list[str]:
    notes = list(model.notes)
    if model.sliding_window is not None:
        notes.append(
            f"a checkpoint's config.json has no key for sliding window {model.sliding_window}: the manifest "
            "holds it, a reference engine accepts no more tokens, and an engine of kind tensorrt is served "
            "with max_attention_window_size"
        )
    if model.rope.type == "dynamic":
        notes.append(
            "dynamic rope scaling: alpha 1.0 is written, which TensorRT-LLM requires; exact up to "
            f"{model.max_position_embeddings} tokens; longer inputs are not verified"
        )
    return notes


def convert_model(directory: Path, out: Path, options: ConvertOptions) -> ConversionSpec:
    """Write a checkpoint: ``config.json``, ``rank{r}.safetensors``, ``enginix.json``.

    ``out`` appears whole at the end, or not at all. The bytes depend on the model and the options alone.

    Raises:
        ModelError, UsageError: as :func:`derive_conversion_spec`; also a value that does not fit the dtype.
        ManifestError: the model is not what its manifest lists, or changes while it is read.
        MachineError: the disk is too small or cannot be written.
    """
    from concurrent.futures import ThreadPoolExecutor

    require_absent(out)
    watch = SourceWatch(directory)
    conversion = derive_conversion_spec(directory, options)
    with new_directory(out) as unfinished:
        # Both read the weights, which come from the disk once.
        with ThreadPoolExecutor(1, thread_name_prefix="digest") as pool:
            identity = pool.submit(identify_model, directory)
            size = write_ranks(unfinished, conversion.ranks)
            inputs = identity.result()
        watch.require_unchanged()
        write_text(unfinished / ckpt.FILE, dump_json(conversion.config))
        if conversion.quant_cfg is not None:
            write_text(unfinished / ckpt.QUANT_FILE, dump_json(conversion.quant_cfg))
        _make_checkpoint_manifest(conversion, inputs, size).write(unfinished)
    return conversion


def _make_checkpoint_manifest(
    conversion: ConversionSpec, inputs: dict[str, Any], size: int
) -> manifest.Manifest:
    model, options = conversion.model, conversion.options
    quantization = conversion.config["quantization"]
    return manifest.Manifest(
        artefact="checkpoint",
        name=manifest.read_artefact_name(model.directory),
        model={
            "architecture": model.architecture,
            "layers": model.num_layers,
            "hiddenSize": model.hidden_size,
            "vocabSize": model.vocab_size,
            "quantization": quantization["quant_algo"],
            "kvCacheQuantization": quantization["kv_cache_quant_algo"],
            **describe_windows(model),
        },
        inputs=inputs,
        options={
            "converter": "enginix",
            "dtype": conversion.config["dtype"],
            **options.mapping.as_options(),
            "parallelEmbedding": options.parallel_embedding,
            "embeddingShardingDim": options.embedding_sharding_dim,
            **({"nvfp4Form": conversion.nvfp4_form} if quantization.get("group_size") == 16 else {}),
            **({"quantize": options.quantize} if options.quantize else {}),
            **({"kvCache": options.kv_cache} if options.kv_cache else {}),
            **({"variant": model.variant} if model.variant else {}),
        },
        results={"bytes": size, "notes": list(conversion.notes)},
    )
