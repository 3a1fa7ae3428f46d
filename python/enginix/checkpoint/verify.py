"""Verify a checkpoint: it has exactly the tensors that TensorRT-LLM requires, with consistent values."""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

from enginix.checkpoint.config import FILE as CONFIG
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.formats import Spec, list_module_tensors
from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.rank_modules import KvCacheModule, LinearModule, Module, SlicedTensor, VectorModule
from enginix.checkpoint.resolve import experts_module
from enginix.checkpoint.value_checks import check_values
from enginix.checkpoint.verification_report import VerificationReport
from enginix.checkpoint.write import rank_file_name
from enginix.errors import EnginixError
from enginix.model import TensorInfo, read_header
from enginix.model.family_rows import list_family_rows, list_literals
from enginix.tables import load_table

# Buffers that TensorRT-LLM's own converter stores; its loader lists them as "Provided but not required".
ROPE_CONSTANTS = (
    "embed_positions*",
    "rotary_inv_freq",
    "long_rope_*",
    "*.attention.alibi_slopes",
    "*.attention.logn_scaling",
    "*.attention.embed_positions_for_gpt_attention",
)


def nvfp4_form(tensors: dict[str, TensorInfo], layout: CheckpointLayout, rank: int) -> str:
    """Return which of NVFP4's two forms a rank file has: ``trtllm`` or ``modelopt``."""
    config = layout.config
    for module in layout.rank(rank):
        if algorithm_of(module, config) == "NVFP4":
            return "modelopt" if f"{module.name}.weights_scaling_factor_2" in tensors else "trtllm"
    return "trtllm"


def algorithm_of(module: Module, config: CheckpointConfig) -> str | None:
    is_quantizable = isinstance(module, LinearModule) and module.quantizable
    return config.quantization.algorithm(module.name) if is_quantizable else None


def kv_spec(module: KvCacheModule, tensors: dict[str, TensorInfo]) -> Spec:
    """Return KV cache scales in the file's form: merged and reciprocal, or ModelOpt's k, v and merged."""
    names = [f"{module.name}.k_cache_scaling_factor", f"{module.name}.v_cache_scaling_factor"]
    if not all(name in tensors for name in names):
        names = [f"{module.name}.kv_cache_rcp_scaling_factor"]
    return {name: ("F32", (1,)) for name in [*names, f"{module.name}.kv_cache_scaling_factor"]}


def list_required_tensors(layout: CheckpointLayout, rank: int, tensors: dict[str, TensorInfo]) -> Spec:
    """Return every tensor that the loader requires of one rank: name → dtype, shape.

    Args:
        tensors: the rank file's own; they determine which of several accepted forms applies.

    Raises:
        EnginixError: a format that cannot hold a matrix of this layout.
    """
    config, required_tensors = layout.config, Spec()
    form = nvfp4_form(tensors, layout, rank)
    for module in layout.rank(rank):
        spec = list_module_tensors(module, config, algorithm_of(module, config), form)
        if isinstance(module, KvCacheModule) and spec:
            spec = kv_spec(module, tensors)
        required_tensors |= spec
    return required_tensors


def _matches_spec(tensor: TensorInfo, dtype: str, shape: tuple[int, ...]) -> bool:
    scalar = tensor.shape in ((), (1,)) and shape in ((), (1,))
    return tensor.dtype == dtype and (tensor.shape == shape or scalar)


def _check_structure(
    layout: CheckpointLayout, rank: int, path: Path, report: VerificationReport
) -> dict[str, TensorInfo]:
    tensors = dict(read_header(path).tensors)
    expected = list_required_tensors(layout, rank, tensors)
    for name, (dtype, shape) in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            report.add(f"{path.name}: {name}", "missing")
        elif not _matches_spec(tensor, dtype, shape):
            what = f"is {tensor.dtype} {list(tensor.shape)}, should be {dtype} {list(shape)}"
            report.add(f"{path.name}: {name}", what)
    for name in sorted(set(tensors) - set(expected)):
        if not any(fnmatchcase(name, p) for p in ROPE_CONSTANTS):
            report.add(f"{path.name}: {name}", "not required by the loader")
    return tensors


def _check_coverage(layout: CheckpointLayout, report: VerificationReport) -> None:
    """Check that quantization applies to the modules that it should, and to no others."""
    config = layout.config
    where, quantization = "config.json: quantization", config.quantization
    if quantization.quant_algo is None:
        return
    linears = list(layout.linears())
    for name in sorted({m.name for m in linears if not m.quantizable}):
        # The embedding is not a matrix product, so formats never apply to it, whatever the patterns say.
        if not name.endswith("vocab_embedding") and quantization.algorithm(name) is not None:
            report.add(where, f"{name} is not protected: exclude_modules has no pattern that matches it")
    experts = {m.name: experts_module(m.name) for m in linears if m.stacked}
    for name, module in experts.items():
        # The loader makes the module's entry of its matrices' for Mixtral; for others it must be there.
        if quantization.layers and config.architecture == "MixtralForCausalLM":
            continue
        if quantization.algorithm(module) != quantization.algorithm(name):
            algorithm_name = quantization.algorithm(module) or "not quantized"
            what = f"{module} around it is {algorithm_name}; TensorRT-LLM builds the experts by that"
            report.add(f"{where}: {name}", what)
    names = {m.name for m in linears} | set(experts.values())
    defaults = set(load_table("number_formats")["defaultExclude"])
    for pattern in quantization.exclude_modules or ():
        if pattern not in defaults and not any(fnmatchcase(n, pattern) for n in names):
            report.add(where, f"exclude pattern {pattern!r} matches no module")
    for name in quantization.layers:
        if name not in names:
            report.add(f"quant_cfg.json: {name}", "names no module")
    quantizable = [m for m in linears if m.quantizable]
    report.matrices = len(quantizable)
    report.quantized = sum(algorithm_of(m, config) is not None for m in quantizable)
    if report.quantized == 0:
        report.add(where, f"{quantization.quant_algo} reaches no matrix")


def _check_computation(config: CheckpointConfig, report: VerificationReport) -> None:
    """Check that the loader reads ``config.json`` as the computation of these architectures."""

    def add_finding(key: str, what: str) -> None:
        report.add(f"{CONFIG}: {key}", what)

    raw, row = config.raw.get("rotary_scaling"), list_family_rows().get(config.architecture)
    positions = ("rope_gpt_neox", "long_rope") if row is None else list_literals(row["position"])
    activations = ("silu", "swiglu") if row is None else tuple(row["activation"]["names"].values())
    if config.position_embedding_type not in positions:
        add_finding("position_embedding_type", f"is {config.position_embedding_type} for the loader")
    if config.hidden_act not in activations:
        add_finding("hidden_act", f"is {config.hidden_act} for the loader")
    rotated = int(config.head_size * float(config.raw.get("rotary_pct", 1.0)))
    # Other classes rotate by their own keys, and write rotary_embedding_dim beside them.
    if row is None and config.rotary_embedding_dim != rotated:
        what = f"is {config.rotary_embedding_dim}; the loader rotates {rotated}: head_size times rotary_pct"
        add_finding("rotary_embedding_dim", what)
    if raw is None or config.rotary_scaling is None:
        return
    kind, scaling = config.rotary_scaling["rope_type"], config.rotary_scaling
    types = load_table("architectures")["rope"]["types"]
    if kind not in types or not types[kind]["loader"]:
        add_finding("rotary_scaling", f"type {kind!r} has no table in TensorRT-LLM")
        return
    for key in sorted(set(raw) - set(scaling) - {"type", "rope_type", "factor"}):
        add_finding(f"rotary_scaling.{key}", "is not read by the loader, which computes without it")
    for key, value in scaling.items():
        if value is None:
            add_finding(f"rotary_scaling.{key}", "is missing, and the loader fails without it")


def _check_ranks(directory: Path, mapping: CheckpointMapping, report: VerificationReport) -> None:
    """Check that there are no files of other ranks; note ranks that do not fill nodes."""
    rank_names = {rank_file_name(r) for r in mapping.ranks()}
    for path in sorted(directory.glob("*.safetensors")):
        if path.name not in rank_names:
            report.add(path.name, f"not a rank file of {mapping.world_size} ranks")
    if not mapping.fills_nodes:
        report.notes.append(
            f"{mapping.world_size} ranks do not fill nodes of gpus_per_node {mapping.gpus_per_node} GPUs: "
            "enginix cannot serve an engine of them"
        )


def _count_parameters(layout: CheckpointLayout, report: VerificationReport) -> None:
    config = layout.config
    for rank in config.mapping.ranks():
        for module in layout.rank(rank):
            if isinstance(module, LinearModule):
                report.parameters += len(module.groups) * module.out * module.inp
            elif isinstance(module, VectorModule):
                report.parameters += module.size
            elif isinstance(module, SlicedTensor):
                report.parameters += prod(module.shape)


def verify_checkpoint(directory: Path) -> VerificationReport:
    """Return all faults of a checkpoint, tensor by tensor and value by value.

    Raises:
        CheckpointError: ``config.json`` cannot be read, or its architecture has no known layout.
    """
    config = CheckpointConfig.read(directory)
    layout, report = CheckpointLayout(config), VerificationReport()
    _check_computation(config, report)
    _check_coverage(layout, report)
    _count_parameters(layout, report)
    _check_ranks(directory, config.mapping, report)
    for rank in config.mapping.ranks():
        path = directory / rank_file_name(rank)
        try:
            tensors = _check_structure(layout, rank, path, report)
        except EnginixError as e:
            report.add(path.name, str(e).splitlines()[0])
            continue
        report.bytes += path.stat().st_size
        check_values(layout, rank, path, tensors, report)
    return report
