"""Model, target and limits → whether it fits, what is tightest, what would help, what the build needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from enginix.checkpoint import convert
from enginix.engine.preflight import check_pipeline
from enginix.errors import EnginixError, ModelError, UsageError
from enginix.inspect import Description, Model, describe
from enginix.model import ModelConfig, open_weights
from enginix.model.jsonfile import read_object
from enginix.plan import arithmetic, edgellm
from enginix.plan.arithmetic import Change, Gpu, Limits, Memory, Sizes
from enginix.plan.kv_layout import find_latent, slides
from enginix.plan.weights import Checkpoint, Ranks, from_headers
from enginix.tables import table

Kind = Literal["tensorrt", "llmapi", "edgellm", "reference"]
KINDS: tuple[Kind, ...] = ("tensorrt", "llmapi", "edgellm", "reference")


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for; None stands for TensorRT-LLM's default, or Edge-LLM's.

    Attributes:
        max_input_len: of the kind edgellm, whose ``max_seq_len`` is the capacity of the KV cache.
        kv_cache: ``auto`` for the model's, or a key of formats.json's ``kvCache``.
        dtype: of everything unquantized.
    """

    kind: Kind = "tensorrt"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_seq_len: int | None = None
    max_input_len: int | None = None
    sequences: int = 1
    kv_cache: str = "auto"
    dtype: str | None = None


@dataclass(frozen=True)
class Build:
    """What making the engine needs; only ``store`` is exact up to the engine, the rest are estimates.

    Attributes:
        model, checkpoint, engine: bytes in the store.
        host_memory: while building; ``gpu_memory`` likewise.
        tmpdir: bytes of temporary files.
    """

    model: int
    checkpoint: int
    engine: int
    host_memory: int
    gpu_memory: int
    tmpdir: int

    @property
    def store(self) -> int:
        return self.model + self.checkpoint + self.engine


@dataclass(frozen=True)
class Plan:
    """The answer.

    Attributes:
        obstacles: what stands in the way beside memory, each with its fix.
        exact: whether weights are the bytes that ``enginix convert`` writes, not an estimate.
        changes: what would make it fit, the smallest first; empty where it fits, or nothing would.
    """

    source: str
    kind: Kind
    gpu: Gpu
    sizes: Sizes
    limits: Limits | edgellm.Limits
    memory: Memory
    exact: bool
    build: Build
    obstacles: tuple[str, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.memory.fits and not self.obstacles

    @property
    def sequences(self) -> int:
        """Sequences of ``max_seq_len`` tokens that have room at the same time."""
        return self.memory.tokens // max(1, self.memory.need_tokens // self.limits.sequences)

    def as_json(self) -> dict[str, Any]:
        """Keys in camel case; the names of limits are those of Nix."""
        found: dict[str, Any] = {
            "fits": self.fits,
            "tightest": self.memory.tightest,
            "model": self.source,
            "kind": self.kind,
            "target": asdict(self.gpu),
            "limits": asdict(self.limits),
            "memory": {**asdict(self.memory), "exactWeights": self.exact, "sequences": self.sequences},
            "build": {**asdict(self.build), "store": self.build.store},
            "obstacles": list(self.obstacles),
            "changes": [dict(c) for c in self.changes],
            "notes": list(self.notes),
        }
        camel: dict[str, Any] = _camel(found)
        return camel


def plan(model: Model, gpu: Gpu, asked: Asked) -> Plan:
    """Plans from headers.

    Raises:
        ModelError: the model's files contradict themselves, or its sizes are not told.
        UsageError: sizes that do not divide the model, or limits that make no sense.
    """
    check_asked(asked)
    said = describe(model)
    if said.count is None:
        raise ModelError("no safetensors weights", where=model.source, fix="pass a model in safetensors")
    if asked.kind == "edgellm":
        return _edgellm(model, said, gpu, asked)
    obstacles, notes = list[str](), list[str]()
    config = _config(model, asked, obstacles)
    raw = language_model(read_object(model.directory / "config.json"))
    sizes = _sizes(said, config, asked, find_latent(raw, model.source))
    if sizes.latent:
        notes.append("multi-head latent attention: every rank keeps the whole latent vector of a token")
    if slides(raw):
        notes.append("layers with a window are counted in full: the KV cache is an upper bound")
    limits = limits_of(sizes, asked)
    weights, exact, ranks = _weights(model, said, sizes, config, asked)
    found = arithmetic.memory(sizes, limits, gpu, weights)
    obstacles += format_obstacles(sizes, gpu, asked.kind)
    if asked.kind == "tensorrt":
        try:
            check_pipeline(said.architecture, asked.pipeline_parallel)
        except UsageError as e:
            obstacles.append(f"{e.what} (fix: {e.fix})")
    notes += _notes(said, sizes, limits, found, asked, gpu)
    helps = [] if found.fits else arithmetic.changes(sizes, limits, gpu, weights)
    if asked.kind == "reference":  # one process on one device, its weights as they are
        helps = [c for c in helps if not {"tensor_parallel", "quantization"} & set(c)]
    return Plan(
        source=model.source,
        kind=asked.kind,
        gpu=gpu,
        sizes=sizes,
        limits=limits,
        memory=found,
        exact=exact,
        build=_build(said, asked.kind, found, limits, ranks),
        obstacles=tuple(obstacles),
        changes=tuple(helps),
        notes=tuple(notes),
    )


def _edgellm(model: Model, said: Description, gpu: Gpu, asked: Asked) -> Plan:
    sizes = replace(_sizes(said, None, asked), element_bytes=2)
    limits = edgellm_limits(asked)
    tensors = open_weights(model.directory)
    total = sum(t.nbytes // (2 if t.dtype == "F32" else 1) for t in tensors.tensors.values())
    weights = arithmetic.estimate(total, sizes, "lm_head.weight" not in tensors.tensors)
    found = edgellm.memory(sizes, limits, gpu, weights)
    notes = ["the CUDA context is not counted; what weights and workspace leave is the KV cache's"]
    if systems := edgellm.systems(gpu):
        notes.append(f"payloads for SM {gpu.sm} are in the wheel for {' and '.join(systems)}")
    if gpu.unified:
        notes.append(f"{gpu.name} shares its memory with the CPU: what programs hold is missing here")
    if limits.max_input_len > sizes.context:
        notes.append(f"max_input_len {limits.max_input_len} exceeds the model's context of {sizes.context}")
    if said.dtype not in (None, "float16"):
        notes.append("computed in float16: enginix edgellm-export refuses weights beyond 65504")
    return Plan(
        source=model.source,
        kind="edgellm",
        gpu=gpu,
        sizes=sizes,
        limits=limits,
        memory=found,
        exact=False,
        build=Build(said.size, total, 0, 0, found.weights + found.workspace, 0),
        obstacles=tuple(edgellm.obstacles(said.architecture, sizes.quantization, gpu)),
        changes=() if found.fits else tuple(edgellm.changes(sizes, limits, gpu, weights)),
        notes=tuple(notes),
    )


def language_model(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a model's language model, which others keep one level down."""
    text = raw.get("text_config")
    return {**raw, **text} if isinstance(text, dict) else dict(raw)


def edgellm_limits(asked: Asked) -> edgellm.Limits:
    """The limits of the kind edgellm.

    Raises:
        UsageError: what this kind does not have, or a prompt that no cache could hold.
    """
    if asked.tensor_parallel != 1 or asked.pipeline_parallel != 1:
        raise UsageError("kind edgellm runs on one GPU", fix="leave --tensor-parallel out, or another kind")
    for name, value, unset in (
        ("--max-num-tokens", asked.max_num_tokens, None),
        ("--sequences", asked.sequences, 1),
    ):
        if value != unset:
            raise UsageError(
                f"kind edgellm has no {name}",
                fix="a step is --max-batch-size prompts of --max-input-len; the KV cache holds "
                "--max-batch-size sequences of --max-seq-len",
            )
    if asked.dtype not in (None, "float16"):
        raise UsageError(f"kind edgellm computes in float16, not in {asked.dtype}", fix="leave --dtype out")
    limits = edgellm.limits_of(asked.max_batch_size, asked.max_input_len, asked.max_seq_len)
    return limits if asked.kv_cache == "auto" else replace(limits, kv_bits=_kv_bits(asked))


def _kv_bits(asked: Asked) -> int | None:
    if asked.kind == "edgellm" and asked.kv_cache not in ("auto", "FP8"):
        raise UsageError(f"kind edgellm has no {asked.kv_cache} KV cache", fix="--kv-cache fp8, or auto")
    return None if asked.kv_cache == "auto" else int(table("formats")["kvCache"][asked.kv_cache]["bits"])


def check_asked(asked: Asked) -> None:
    """Refuses numbers below 1, naming the flag."""
    if asked.max_input_len is not None and asked.kind != "edgellm":
        raise UsageError("--max-input-len is of kind edgellm", fix="a prompt is part of --max-seq-len")
    for name, value in (
        ("--tensor-parallel", asked.tensor_parallel),
        ("--pipeline-parallel", asked.pipeline_parallel),
        ("--max-batch-size", asked.max_batch_size),
        ("--max-num-tokens", asked.max_num_tokens),
        ("--max-seq-len", asked.max_seq_len),
        ("--max-input-len", asked.max_input_len),
        ("--sequences", asked.sequences),
    ):
        if value is not None and not 1 <= value < 1 << 31:
            raise UsageError(f"{name} {value} is not a number of at least 1", fix=f"pass {name} 1 or more")


def _sizes(said: Description, config: ModelConfig | None, asked: Asked, latent: int = 0) -> Sizes:
    values = {
        "layers": said.layers,
        "heads": said.heads,
        "kv_heads": said.kv_heads,
        "head_size": said.head_size,
        "hidden_size": said.hidden_size,
        "mlp_width": said.intermediate_size,
        "vocabulary": said.vocabulary,
        "context": said.context,
    }
    if missing := [k for k, v in values.items() if v is None]:
        raise ModelError(
            f"config.json does not tell {missing[0].replace('_', ' ')}",
            where=said.source,
            fix="pass a decoder-only language model",
        )
    if config is not None and (experts := config.experts) is not None:
        values["mlp_width"] = experts.top_k * experts.width + experts.shared_width
    dtype = asked.dtype or said.dtype or "float16"
    if asked.dtype is None and dtype == "float32" and asked.kind != "reference":
        dtype = "float16"
    element = arithmetic.ELEMENT_BYTES.get(dtype, 2)
    algorithm = said.quantization.algorithm if said.quantization else None
    cache = (said.quantization.kv_cache if said.quantization else None) or ""
    rows = table("formats")["kvCache"]
    return Sizes(
        **{k: v for k, v in values.items() if v is not None},
        latent=latent,
        element_bytes=element,
        quantization=algorithm or "NO_QUANT",
        kv_bits=rows[cache]["bits"] if cache in rows and asked.kind != "reference" else 8 * element,
    )


def limits_of(sizes: Sizes, asked: Asked) -> Limits:
    """The limits with TensorRT-LLM's defaults filled in; for ``reference`` those of one device."""
    kv = _kv_bits(asked)
    length, reference = asked.max_seq_len or sizes.context, asked.kind == "reference"
    batch = asked.max_batch_size or (1 if reference else arithmetic.default("maxBatchSize"))
    tokens = asked.max_num_tokens or (length if reference else arithmetic.default("maxNumTokens"))
    return Limits(
        max_batch_size=batch,
        # As trtllm-build clips it: a step never takes more than all sequences hold together.
        max_num_tokens=min(tokens, batch * length),
        max_seq_len=length,
        sequences=asked.sequences,
        tensor_parallel=1 if reference else asked.tensor_parallel,
        pipeline_parallel=1 if reference else asked.pipeline_parallel,
        kv_bits=kv,
    )


def _config(model: Model, asked: Asked, obstacles: list[str]) -> ModelConfig | None:
    """The model as the converter reads it; None where it refuses, with the reason among the obstacles."""
    try:
        config = convert.plan(model.directory, convert.Options(asked.dtype), headers_only=True).model
        Checkpoint(config, open_weights(model.directory), asked.dtype).heaviest(1, 1, None)
    except EnginixError as e:
        if asked.kind != "llmapi":
            obstacles.append(f"no checkpoint: {e.what}" + (f" (fix: {e.fix})" if e.fix else ""))
        return None
    return config


def _weights(
    model: Model, said: Description, sizes: Sizes, config: ModelConfig | None, asked: Asked
) -> tuple[arithmetic.Weights, bool, Ranks | None]:
    tensors = open_weights(model.directory)
    ranks = None
    if config is not None:
        checkpoint = Checkpoint(config, tensors, asked.dtype)
        ranks = checkpoint.ranks(asked.tensor_parallel, asked.pipeline_parallel, None, None)
    if asked.kind == "reference":
        assert said.count is not None
        # A tied head is a matrix of its own in a checkpoint.
        copy = sizes.vocabulary * sizes.hidden_size if "lm_head.weight" not in tensors.tensors else 0
        whole = (said.count.parameters + copy) * sizes.element_bytes
        return (lambda tp, pp, quantization: whole), False, ranks
    if config is not None and ranks is not None:
        return checkpoint.heaviest, asked.kind == "tensorrt", ranks
    return (lambda tp, pp, quantization: from_headers(tensors, tp, pp)), False, None


def format_obstacles(sizes: Sizes, gpu: Gpu, kind: Kind) -> list[str]:
    """Why the GPU, or the kind on it, does not take the model's format; empty where it does."""
    row = table("quantization")["algorithms"].get(sizes.quantization)
    if kind == "reference" or row is None:
        return []
    name, least, refused = sizes.quantization, row["minSm"], row["refusedSm"]
    if least is not None and gpu.sm < least:
        have = f", which has {', '.join(gpu.formats)}" if gpu.formats else ""
        return [f"{name} needs SM {least} or later; {gpu.name} is SM {gpu.sm}{have}"]
    if kind == "tensorrt" and refused and refused[0] <= gpu.sm < refused[1]:
        return [
            f"TensorRT-LLM builds no {name} engine on SM {refused[0]} to {refused[1] - 1}; "
            f"{gpu.name} is SM {gpu.sm}"
        ]
    return []


def _notes(
    said: Description, sizes: Sizes, limits: Limits, found: Memory, asked: Asked, gpu: Gpu
) -> list[str]:
    notes = []
    if gpu.unified:
        notes.append(f"{gpu.name} shares its memory with the CPU: what programs hold is missing here")
    if limits.max_seq_len > sizes.context:
        notes.append(f"max_seq_len {limits.max_seq_len} exceeds the model's context of {sizes.context}")
    each = found.need_tokens // limits.sequences
    room = found.tokens // each if each else 0
    if asked.max_batch_size and found.fits and room < asked.max_batch_size:
        notes.append(
            f"room for {room} of {asked.max_batch_size} sequences at full length; more wait, "
            "or run while they are shorter"
        )
    kv = said.quantization.kv_cache if said.quantization else None
    if asked.kind == "tensorrt" and limits.kv_bits == 8 and kv is None:
        notes.append("an FP8 KV cache is part of the checkpoint: quantize the model with one")
    if asked.kind == "llmapi":
        notes.append("weights are those of the engine's layout; the PyTorch backend's own is not measured")
    return notes


def _build(said: Description, kind: Kind, found: Memory, limits: Limits, ranks: Ranks | None) -> Build:
    """Source of each: docs/plan.md."""
    checkpoint = ranks.files if ranks and kind != "llmapi" else 0
    if kind != "tensorrt":
        return Build(said.size, checkpoint, 0, 0, 0, 0)
    world = limits.tensor_parallel * limits.pipeline_parallel
    return Build(
        model=said.size,
        checkpoint=checkpoint,
        engine=found.weights * world,
        host_memory=4 * found.weights,
        gpu_memory=found.weights + found.workspace,
        tmpdir=found.weights,
    )


def _camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {_name(k): _camel(v) for k, v in value.items()}
    return [_camel(v) for v in value] if isinstance(value, list) else value


def _name(key: str) -> str:
    head, *rest = key.split("_")
    return head + "".join(word.capitalize() for word in rest)
