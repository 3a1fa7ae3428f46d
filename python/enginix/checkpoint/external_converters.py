"""Convert further architectures with ModelOpt's export or the runtime's from_hugging_face."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from enginix.checkpoint import config as ckpt
from enginix.checkpoint.convert import ConvertOptions
from enginix.checkpoint.mapping import check_node_sizes, default_gpus_per_node
from enginix.checkpoint.write import rank_file_name
from enginix.digests import SourceWatch
from enginix.errors import CheckpointError, EnginixError, MachineError, ModelError, UsageError
from enginix.files import dump_json, write_text
from enginix.manifest import Manifest, read_artefact_name
from enginix.model import open_weights, read_header
from enginix.model.config_rules import advise_other_converter
from enginix.model.identity import identify_model
from enginix.model.jsonfile import read_object
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.optional_libraries import missing_library
from enginix.output_path import require_absent
from enginix.tables import load_table
from enginix.wording import first_line
from enginix.work_directory import new_directory

# Substrings of a path by which TensorRT-LLM's Llama class takes a model for another one.
_PATH_TRAPS = ("llava", "vila", "exaone")


def require_architecture(directory: Path, converter: str) -> tuple[str, dict[str, Any]]:
    """Return the model's architecture and its row of converters.json.

    Raises:
        ModelError: no architecture, or one that ``converter`` does not support; the message lists its own.
    """
    where = str(directory / "config.json")
    names = read_object(directory / "config.json").get("architectures")
    rows = load_table("converters")["converters"][converter]["architectures"]
    model_architecture = names[0] if isinstance(names, list) and len(names) == 1 else None
    if not isinstance(model_architecture, str) or model_architecture not in rows:
        model_architecture = str(model_architecture)
        with limited_llmapi_advice(model_architecture):
            raise ModelError(
                f"converter {converter!r} does not support architecture {model_architecture!r}; "
                f"it supports: {', '.join(sorted(rows))}",
                where=where,
                fix=advise_other_converter(model_architecture),
            )
    return model_architecture, rows[model_architecture]


def _refuse_unsupported_options(directory: Path, options: ConvertOptions, row: dict[str, Any]) -> None:
    raw = read_object(directory / "config.json")
    if (directory / "hf_quant_config.json").exists() or raw.get("quantization_config"):
        raise UsageError("the model is quantized", where=str(directory), fix="pass the unquantized model")
    if options.quantize or options.kv_cache or options.parallel_embedding or options.nvfp4_form != "auto":
        raise UsageError(
            "--quantize, --kv-cache, --nvfp4-form and --parallel-embedding need --converter enginix",
            fix="leave them out",
        )
    if options.variant is not None:
        raise UsageError("--variant needs --converter enginix", fix="leave it out")
    if options.mapping.expert_parallel != 1 or options.mapping.pipeline_parallel != 1:
        raise UsageError("this converter supports no other parallelism than --tensor-parallel")
    limit = row.get("maxTensorParallel")
    if limit is not None and options.mapping.tensor_parallel > limit:
        raise UsageError(
            f"--tensor-parallel {options.mapping.tensor_parallel}: at most {limit} with this converter",
            fix=f"--tensor-parallel {limit}",
        )
    check_node_sizes(options.mapping)


def _finish_checkpoint(
    partial: Path, directory: Path, name: str, converter: str, options: ConvertOptions, tools: dict[str, str]
) -> Manifest:
    """Check that every rank is there and readable; return the manifest."""
    try:
        sizes = [
            read_header(partial / rank_file_name(r)).path.stat().st_size
            for r in range(options.mapping.world_size)
        ]
        raw = read_object(partial / ckpt.FILE)
    except EnginixError as e:
        raise CheckpointError(f"{converter} wrote an incomplete checkpoint: {e.what}", where=e.where) from e
    requested_gpus, mapping = options.mapping.gpus_per_node, raw.get("mapping")
    written_gpus = mapping.get("gpus_per_node") if isinstance(mapping, dict) else None
    if requested_gpus != (default_gpus_per_node() if written_gpus is None else written_gpus):
        raise CheckpointError(
            f"{converter} wrote gpus_per_node {written_gpus}, but {requested_gpus} was requested",
            where=f"{ckpt.FILE}: mapping",
            fix="leave out --gpus-per-node, and serve on nodes of as many GPUs",
        )
    return Manifest(
        artefact="checkpoint",
        name=read_artefact_name(directory),
        model={"architecture": name, "quantization": None, "kvCacheQuantization": None},
        inputs=identify_model(directory),
        options={"converter": converter, "dtype": raw.get("dtype"), **options.mapping.as_options()},
        tools=Manifest("checkpoint", "").tools | tools,
        results={"bytes": sum(sizes)},
    )


@contextlib.contextmanager
def _guard_converter(converter: str) -> Iterator[None]:
    """Send a converter's prints to standard error, and raise its exceptions as errors of enginix."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (EnginixError, OSError):
        raise
    except Exception as e:
        raise ModelError(
            f"{converter} failed: {type(e).__name__}: {first_line(e)}",
            fix="run again with ENGINIX_TRACEBACK=1 to see where, or use another --converter",
        ) from e


@contextlib.contextmanager
def _open_checkpoint(
    directory: Path, out: Path, converter: str, options: ConvertOptions, tools: dict[str, str], name: str
) -> Iterator[Path]:
    """Yield a directory for a converter to write, and describe what it wrote: whole at the end, or absent."""
    watch = SourceWatch(directory)
    with new_directory(out) as partial, _guard_converter(converter):
        yield partial
        checkpoint_manifest = _finish_checkpoint(partial, directory, name, converter, options, tools)
        watch.require_unchanged()
        checkpoint_manifest.write(partial)


def _prepare_conversion(
    directory: Path, out: Path, converter: str, options: ConvertOptions
) -> tuple[str, dict[str, Any]]:
    """Check a conversion before a library is loaded; return the architecture and its row."""
    require_absent(out)
    name, row = require_architecture(directory, converter)
    _refuse_unsupported_options(directory, options, row)
    open_weights(directory)
    return name, row


def convert_with_modelopt(directory: Path, out: Path, options: ConvertOptions) -> str:
    """Convert with ModelOpt's export on the CPU; return the architecture.

    Its config.json is completed with the model's rope base (which ModelOpt's fallback drops for configs of
    transformers 5), float32 logits as in TensorRT-LLM, the GPUs of a node, and the keys that converters.json
    lists for the family.

    Raises:
        ModelError: ModelOpt does not support the architecture, or failed.
        MachineError: torch, transformers or modelopt is not installed, or ModelOpt has no such export.
    """
    name, row = _prepare_conversion(directory, out, "modelopt", options)
    try:
        import modelopt
        import modelopt.torch.export as modelopt_export
        import torch
        import transformers
    except ImportError as e:
        raise missing_library(e, "convert") or e from e
    export_checkpoint = getattr(modelopt_export, "export_tensorrt_llm_checkpoint", None)
    if export_checkpoint is None:
        raise MachineError(
            f"ModelOpt {modelopt.__version__} writes no checkpoint of TensorRT-LLM: 0.48 deprecates "
            "export_tensorrt_llm_checkpoint, and 0.49 removes it",
            where=sys.executable,
            fix="--converter enginix, which writes the same form for its architectures; for others, "
            "pip install 'nvidia-modelopt<0.49'",
        )
    tools = {"modelopt": modelopt.__version__, "transformers": transformers.__version__}
    with _open_checkpoint(directory, out, "modelopt", options, tools, name) as partial:
        dtype = getattr(torch, options.dtype) if options.dtype else "auto"
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, trust_remote_code=False, local_files_only=True
        ).eval()
        export_checkpoint(model, row["family"], model.dtype, str(partial), options.mapping.tensor_parallel, 1)
        raw = read_object(partial / ckpt.FILE) | {"logits_dtype": "float32"} | row["config"]
        rope = getattr(model.config, "rope_parameters", None) or {}
        if raw["position_embedding_type"].startswith("rope") and "rope_theta" in rope:
            raw.setdefault("rotary_base", float(rope["rope_theta"]))
        raw["mapping"]["gpus_per_node"] = options.mapping.gpus_per_node
        write_text(partial / ckpt.FILE, dump_json(raw))
    return name


def convert_with_tensorrt_llm(directory: Path, out: Path, options: ConvertOptions) -> str:
    """Convert with the runtime itself, rank by rank, where ``tensorrt_llm`` can be imported.

    Raises:
        ModelError: an unsupported architecture, a path that misleads the runtime, or a failed conversion.
        MachineError: tensorrt_llm cannot be imported.
    """
    name, _ = _prepare_conversion(directory, out, "tensorrt_llm", options)
    for trap in _PATH_TRAPS:
        if trap in str(directory).lower():
            raise UsageError(
                f"TensorRT-LLM treats a model whose path contains {trap!r} as another model",
                where=str(directory),
                fix="pass the model under another path",
            )
    try:
        runtime = importlib.import_module("tensorrt_llm")
        model_map = importlib.import_module("tensorrt_llm.models").MODEL_MAP
    except ImportError as e:
        raise MachineError(
            f"tensorrt_llm cannot be imported: {e}",
            fix="--converter tensorrt_llm runs inside the pinned runtime, in a GPU build",
        ) from e
    tools = {"tensorrt_llm": runtime.__version__}
    with _open_checkpoint(directory, out, "tensorrt_llm", options, tools, name) as partial:
        if name not in model_map:
            raise ModelError(f"this tensorrt_llm has no class {name}", fix="use another runtime")
        for rank in options.mapping.ranks():
            _convert_rank(model_map[name], runtime.Mapping, directory, partial, options, rank)
    return name


def _convert_rank(
    model_class: Any,
    mapping_class: Callable[..., Any],
    directory: Path,
    partial: Path,
    options: ConvertOptions,
    rank: int,
) -> None:
    """Convert one rank, so that one rank's weights are in memory at a time; rank 0 writes config.json."""
    tp = options.mapping.tensor_parallel
    each = options.mapping.gpus_per_node
    mapping = mapping_class(world_size=tp, rank=rank, gpus_per_node=each, tp_size=tp, pp_size=1)
    model = model_class.from_hugging_face(str(directory), options.dtype or "auto", mapping=mapping)
    model.save_checkpoint(str(partial), save_config=rank == 0)
