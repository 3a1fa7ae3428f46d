"""Hugging Face model → TensorRT-LLM checkpoint: planned from headers, then written in one pass."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.checkpoint import config as ckpt
from enginix.checkpoint.describe import describe
from enginix.checkpoint.formats import format_of
from enginix.checkpoint.formats.fp8 import floats
from enginix.checkpoint.formats.nvfp4 import fits_tiles
from enginix.checkpoint.formats.plain import bias_parts, caster
from enginix.checkpoint.layout import KvCache, Layout, Linear, Vector
from enginix.checkpoint.mapping import Mapping, check, check_nodes, check_pipeline
from enginix.checkpoint.missing import explain_unexpected
from enginix.checkpoint.parts import COPY, HeaderReader, Output, Reader
from enginix.checkpoint.resolve import Resolved, resolve
from enginix.checkpoint.source import FLOATS, Source, vector
from enginix.checkpoint.write import write_ranks
from enginix.errors import ModelError, UsageError
from enginix.files import check_free, dump_json, new_directory, write_text
from enginix.model import ModelConfig, Weights, open_weights
from enginix.model.attention_window import describe_windows
from enginix.model.identity import inputs

NVFP4_FORMS = ("auto", "trtllm", "modelopt")
ON_LOAD = ("FP8_PER_CHANNEL_PER_TOKEN",)


@dataclass(frozen=True)
class Options:
    """What a conversion may be asked for.

    Attributes:
        dtype: of everything unquantized; None keeps the model's (float32 becomes float16, as TensorRT-LLM
            does).
        parallel_embedding: cut the embedding over tensor parallel ranks, along ``embedding_sharding_dim``
            (0 vocabulary, 1 hidden).
        nvfp4_form: which of the two forms that TensorRT-LLM reads; ``auto`` takes its own, and ModelOpt's
            where the scales are no whole tiles.
        quantize: quantize an unquantized model while it is converted; see ``ON_LOAD``.
        kv_cache: ``FP8`` gives a model an FP8 KV cache that it does not ask for, with scales of 1.0 where it
            has none.
        kind: of engines that the checkpoint must load into: ``tensorrt`` refuses what TensorRT-LLM's class
            does not take; None is any, as the reference executor.
    """

    dtype: str | None = None
    mapping: Mapping = field(default_factory=Mapping)
    parallel_embedding: bool = False
    embedding_sharding_dim: int = 0
    nvfp4_form: str = "auto"
    quantize: str | None = None
    kv_cache: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Plan:
    """A conversion that is known to work before a weight is read, but for the values of the weights.

    Attributes:
        config: content of ``config.json``.
        quant_cfg: content of ``quant_cfg.json``, or None.
        ranks: the tensors of each rank.
        notes: what a person should know: scales that were missing, attention windows that are not carried.
    """

    model: ModelConfig
    options: Options
    config: MappingType[str, Any]
    quant_cfg: MappingType[str, Any] | None
    nvfp4_form: str
    ranks: tuple[tuple[Output, ...], ...]
    notes: tuple[str, ...]


def _dtype(model: ModelConfig, weights: Weights, asked: str | None, notes: list[str]) -> str:
    if asked is not None:
        if asked not in ckpt.DTYPES:
            raise UsageError(f"--dtype {asked!r} is unknown", fix=f"one of: {', '.join(ckpt.DTYPES)}")
        return asked
    found = model.dtype
    if found is None:
        embedding = weights.tensors.get("model.embed_tokens.weight")
        codes = {v: k for k, v in ckpt.DTYPES.items()}
        found = codes.get(embedding.dtype, "float16") if embedding else "float16"
    if found == "float32":
        notes.append(
            "the model is float32; float16 is written, as TensorRT-LLM does (--dtype says otherwise)"
        )
        return "float16"
    return found


class _Planner:
    """Makes the outputs of each module."""

    def __init__(self, layout: Layout, source: Source, resolved: Resolved, form: str) -> None:
        self.layout, self.source, self.resolved, self.form = layout, source, resolved, form
        self.config = layout.config
        self.dtype = ckpt.DTYPES[self.config.dtype]
        self.default_kv_scales: set[str] = set()

    def rank(self, rank: int) -> tuple[Output, ...]:
        outputs: list[Output] = []
        for module in self.layout.rank(rank):
            if isinstance(module, Vector):
                outputs.append(self.vector(module))
            elif isinstance(module, Linear):
                outputs.extend(self.linear(module))
            else:
                outputs.extend(self.kv_cache(module))
        return tuple(outputs)

    def vector(self, module: Vector) -> Output:
        info = self.source.tensor(module.module, "weight", FLOATS, (module.size,))
        part = vector(info, (0, module.size), caster(info, self.dtype))
        return Output(f"{module.name}.weight", self.dtype, (module.size,), (part,))

    def linear(self, module: Linear) -> list[Output]:
        number_format = format_of(self.resolved.algorithms.get(module.name), self.form)
        spec = number_format.spec(module, self.config)
        parts = number_format.parts(module, self.config, self.source)
        outputs = [Output(f"{module.name}.{leaf}", *spec[leaf], parts[leaf]) for leaf in spec]
        if module.bias:
            bias = bias_parts(module, self.dtype, self.source)
            outputs.append(Output(f"{module.name}.bias", self.dtype, (module.out,), bias))
        return outputs

    def kv_cache(self, module: KvCache) -> list[Output]:
        if self.config.quantization.kv_cache_quant_algo is None:
            return []
        import numpy as np

        scale = 0.0
        for name, leaf in zip(module.modules, ("k_scale", "v_scale"), strict=True):
            if not self.source.has(name, leaf):
                self.default_kv_scales.add(f"{name}.{leaf}")
            scale = max(scale, self.source.scale(name, leaf) if self.source.has(name, leaf) else 1.0)
        inverse = float(np.float32(1) / np.float32(scale))
        return [
            Output(f"{module.name}.kv_cache_scaling_factor", "F32", (1,), (floats([scale]),)),
            Output(f"{module.name}.kv_cache_rcp_scaling_factor", "F32", (1,), (floats([inverse]),)),
        ]


def _form(asked: str, layout: Layout, resolved: Resolved, notes: list[str]) -> str:
    if asked not in NVFP4_FORMS:
        raise UsageError(f"--nvfp4-form {asked!r} is unknown", fix=f"one of: {', '.join(NVFP4_FORMS)}")
    if asked != "auto":
        return asked
    linears = [
        m
        for rank in layout.config.mapping.ranks()
        for m in layout.rank(rank)
        if isinstance(m, Linear) and resolved.algorithms.get(m.name) == "NVFP4"
    ]
    odd = next((m for m in linears if not fits_tiles(m)), None)
    if odd is None or any(m.stacked for m in linears):
        return "trtllm"
    notes.append(
        f"{odd.name} is {odd.out} x {odd.inp} a rank, no whole number of NVFP4 scale tiles: "
        "ModelOpt's form is written, which TensorRT-LLM pads on loading"
    )
    return "modelopt"


def plan(directory: Path, options: Options, *, headers_only: bool = False) -> Plan:
    """Reads configuration and headers and decides every byte's origin.

    Args:
        headers_only: read no scale's value, either; such a plan says whether a model can be converted, and
            must not be written.

    Raises:
        ModelError: the model is damaged, incomplete, or cannot be expressed.
        UsageError: the options do not fit the model.
    """
    model = ModelConfig.read(directory)
    check(model, options.mapping)
    if options.kind == "tensorrt":
        check_pipeline(model, options.mapping)
    check_nodes(options.mapping)
    if options.quantize not in (None, *ON_LOAD):
        raise UsageError(f"--quantize {options.quantize!r} is unknown", fix=f"one of: {', '.join(ON_LOAD)}")
    if options.kv_cache not in (None, "FP8"):
        raise UsageError(f"--kv-cache {options.kv_cache!r} is unknown", fix="--kv-cache FP8")
    weights, notes = open_weights(directory), _notes(model)
    dtype = _dtype(model, weights, options.dtype, notes)

    def description(keys: dict[str, Any]) -> dict[str, Any]:
        return describe(
            model,
            dtype,
            options.mapping,
            keys,
            parallel_embedding=options.parallel_embedding,
            embedding_sharding_dim=options.embedding_sharding_dim,
        )

    with HeaderReader() if headers_only else Reader() as reader:
        source = Source(weights, reader, tied=model.tie_word_embeddings)
        layout = Layout(ckpt.parse(description({}), ckpt.FILE))
        resolved = resolve(
            model.quantization, layout, source, on_load=options.quantize, kv_cache=options.kv_cache
        )
        raw = description(resolved.keys)
        layout = Layout(ckpt.parse(raw, ckpt.FILE, resolved.quant_cfg))
        form = _form(options.nvfp4_form, layout, resolved, notes)
        planner = _Planner(layout, source, resolved, form)
        ranks = tuple(planner.rank(r) for r in options.mapping.ranks())
        if unused := source.unused():
            what, fix = explain_unexpected(unused[0], model.architecture, len(unused))
            raise ModelError(what, where=str(directory), fix=fix)
        if model.tie_word_embeddings and not headers_only:
            notes += _tied(weights, reader)
    if missing := planner.default_kv_scales:
        notes.append(f"{len(missing)} KV cache scales are missing ({min(missing)} …): 1.0 is written")
    return Plan(model, options, raw, resolved.quant_cfg, form, ranks, tuple(notes))


def _tied(weights: Weights, reader: Reader) -> list[str]:
    """A head that is stored beside the embedding it should be, and differs from it."""
    pair = [weights.tensors.get(name) for name in ("model.embed_tokens.weight", "lm_head.weight")]
    embedding, head = pair
    if embedding is None or head is None:
        return []
    length = min(COPY, embedding.nbytes, head.nbytes)
    first, second = (bytes(reader.read(t.path, t.begin, t.begin + length)) for t in (embedding, head))
    if first == second and embedding.dtype == head.dtype:
        return []
    return [
        "tie_word_embeddings is true, and another lm_head.weight is stored: it is written, as transformers "
        "loads it; other software takes the embedding"
    ]


def _notes(model: ModelConfig) -> list[str]:
    notes = list(model.notes)
    if model.sliding_window is not None:
        notes.append(
            f"sliding window {model.sliding_window} has no place in a checkpoint's config.json: the manifest "
            "carries it, a reference engine takes no more tokens, and an engine of kind tensorrt is served "
            "with max_attention_window_size"
        )
    if model.rope.type == "dynamic":
        notes.append(
            "dynamic rope scaling: alpha 1.0 is written, which TensorRT-LLM insists on; exact up to "
            f"{model.max_position_embeddings} tokens, longer inputs were not tried on an engine"
        )
    return notes


def convert(directory: Path, out: Path, options: Options) -> Plan:
    """Plans and writes a checkpoint: ``config.json``, ``rank{r}.safetensors``, ``enginix.json``.

    ``out`` appears whole at the end, or not at all. The bytes depend on the model and the options alone.

    Raises:
        ModelError, UsageError: as ``plan``; also a value that does not fit the dtype.
        MachineError: the disk is too small or refuses.
    """
    check_free(out)
    planned = plan(directory, options)
    with new_directory(out) as partial:
        size = write_ranks(partial, planned.ranks)
        write_text(partial / ckpt.FILE, dump_json(planned.config))
        if planned.quant_cfg is not None:
            write_text(partial / ckpt.QUANT_FILE, dump_json(planned.quant_cfg))
        _manifest(planned, size).write(partial)
    return planned


def _manifest(planned: Plan, size: int) -> manifest.Manifest:
    model, options = planned.model, planned.options
    quantization = planned.config["quantization"]
    return manifest.Manifest(
        artefact="checkpoint",
        name=manifest.name_of(model.directory),
        model={
            "architecture": model.architecture,
            "layers": model.num_layers,
            "hiddenSize": model.hidden_size,
            "vocabSize": model.vocab_size,
            "quantization": quantization["quant_algo"],
            "kvCacheQuantization": quantization["kv_cache_quant_algo"],
            **describe_windows(model),
        },
        inputs=inputs(model.directory, open_weights(model.directory)),
        options={
            "converter": "enginix",
            "dtype": planned.config["dtype"],
            "tensorParallel": options.mapping.tensor_parallel,
            "pipelineParallel": options.mapping.pipeline_parallel,
            "expertParallel": options.mapping.expert_parallel,
            "gpusPerNode": options.mapping.gpus_per_node,
            "parallelEmbedding": options.parallel_embedding,
            "embeddingShardingDim": options.embedding_sharding_dim,
            **({"nvfp4Form": planned.nvfp4_form} if quantization.get("group_size") == 16 else {}),
            **({"quantize": options.quantize} if options.quantize else {}),
            **({"kvCache": options.kv_cache} if options.kv_cache else {}),
        },
        results={"bytes": size, "notes": list(planned.notes)},
    )
