"""The checkpoint of an engine build, read from JSON and file sizes, without reading weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.digests import digest_file
from enginix.errors import CheckpointError, ModelError
from enginix.files import read_json_object, sha256_file
from enginix.integrity import list_content
from enginix.kinds.tensorrt.build.build_subject import BuildSubject, make_build_subject
from enginix.model.class_defaults import fill_absent_sizes
from enginix.model.context_length import read_checkpoint_context, read_model_context
from enginix.model.identity import identify_model, require_same_model
from enginix.model.jsonfile import (
    positive_or_none,
    read_architecture,
    refuse_other_artefact,
    select_language_model,
)
from enginix.model.other_layouts import explain_other_config, require_model_config


@dataclass(frozen=True)
class BuildCheckpoint:
    """A checkpoint, or a model that the LLM API loads.

    Attributes:
        path: the checkpoint; None for a model.
        ranks: rank → bytes of its weights; empty for a model.
        total: bytes of all weights.
        context: tokens of the model's context.
        positions: ``max_position_embeddings``.
        config: the checkpoint's config.json; of a model the keys that its checkpoint would have.
    """

    path: Path | None
    architecture: str | None
    dtype: str | None
    quantization: str | None
    kv_cache: str | None
    context: int | None
    tensor_parallel: int
    pipeline_parallel: int
    total: int
    ranks: dict[int, int] = field(default_factory=dict)
    made_from: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    positions: int | None = None

    def subject(self, sm: int) -> BuildSubject:
        """Return the build subject for a GPU.

        Raises:
            UsageError: a value in config.json has another type.
        """
        return make_build_subject(self.config, sm)

    def describe_model(self) -> dict[str, Any]:
        """The model's part of an engine's manifest."""
        return {
            "architecture": self.architecture,
            "quantization": self.quantization,
            "kvCacheQuantization": self.kv_cache,
            "dtype": self.dtype,
            "maxPositionEmbeddings": self.positions,
        }

    @property
    def world_size(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def heaviest(self) -> int:
        """Return the bytes of the heaviest rank's weights."""
        return max(self.ranks.values(), default=self.total // self.world_size)

    @staticmethod
    def read_input(checkpoint: Path | None, model: Path) -> BuildCheckpoint:
        """Read the checkpoint; without one, the model."""
        return BuildCheckpoint.of_model(model) if checkpoint is None else BuildCheckpoint.read(checkpoint)

    @staticmethod
    def read(path: Path) -> BuildCheckpoint:
        """Read a TensorRT-LLM checkpoint.

        Raises:
            CheckpointError: not a checkpoint, or a rank is missing.
        """
        config = _read_json_file(path / "config.json", "checkpoint")
        where = path / "config.json"
        if other := explain_other_config(config, "checkpoint"):
            raise CheckpointError(other[0], where=str(path), fix=other[1])
        try:
            mapping, quantization = config.get("mapping") or {}, config.get("quantization") or {}
            tp, pp = (_require_rank_count(mapping.get(name, 1)) for name in ("tp_size", "pp_size"))
            architecture, dtype = str(config["architecture"]), str(config["dtype"])
            algorithm = _require_name(quantization.get("quant_algo"))
            kv_cache = _require_name(quantization.get("kv_cache_quant_algo"))
            positions = positive_or_none(config.get("max_position_embeddings"))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise CheckpointError(
                f"not a TensorRT-LLM checkpoint: {e}", where=str(where), fix="make one with enginix convert"
            ) from e
        ranks = {}
        for rank in range(tp * pp):
            file = path / f"rank{rank}.safetensors"
            if not file.is_file():
                raise CheckpointError(
                    f"rank{rank}.safetensors is missing", where=str(path), fix="convert the model again"
                )
            ranks[rank] = file.stat().st_size
        made_from = None
        if (path / manifest.MANIFEST_FILE).exists():
            made_from = manifest.read_manifest(path, "checkpoint").inputs.get("model")
        return BuildCheckpoint(
            path=path,
            architecture=architecture,
            dtype=dtype,
            quantization=algorithm,
            kv_cache=kv_cache,
            context=read_checkpoint_context(config),
            positions=positions,
            tensor_parallel=tp,
            pipeline_parallel=pp,
            total=sum(ranks.values()),
            ranks=ranks,
            made_from=made_from if isinstance(made_from, dict) else None,
            config=config,
        )

    @staticmethod
    def of_model(path: Path, tensor_parallel: int = 1) -> BuildCheckpoint:
        """Read a Hugging Face model, for the strategy llm-api and the kind llmapi.

        Raises:
            ModelError: not a model.
        """
        config = _read_json_file(path / "config.json", "model")
        require_model_config(config, str(path))
        text = fill_absent_sizes(select_language_model(config))
        quantization, kv_cache = _read_model_quantization(path, config)
        context, architecture = read_model_context(text), read_architecture(config)
        dtype = next((d for n in ("torch_dtype", "dtype") if isinstance(d := config.get(n), str)), None)
        checkpoint_keys = {"architecture": architecture, "dtype": dtype, "tp_size": tensor_parallel}
        checkpoint_keys |= {"quant_algo": quantization, "kv_cache_quant_algo": kv_cache}
        return BuildCheckpoint(
            path=None,
            architecture=architecture,
            dtype=dtype,
            quantization=quantization,
            kv_cache=kv_cache,
            context=context,
            positions=positive_or_none(text.get("max_position_embeddings")),
            tensor_parallel=tensor_parallel,
            pipeline_parallel=1,
            total=sum(p.stat().st_size for p in path.glob("*.safetensors")),
            config={**checkpoint_keys, "max_position_embeddings": context},
        )

    def identity(self, model: Path) -> dict[str, Any]:
        """Return the identity of both inputs by content, never by path.

        Raises:
            ManifestError: the checkpoint was made from another model than this one.
        """
        model_inputs = compute_model_identity(model)
        if self.path is None:
            return {"model": model_inputs}
        require_same_model(self.made_from, model_inputs, self.path, "checkpoint")
        identity: dict[str, Any] = {"configSha256": sha256_file(self.path / "config.json")}
        content = list_content(self.path)
        identity["ranks"] = {
            name: (content.get(name) or digest_file(self.path / name)).as_json()
            for name in (f"rank{r}.safetensors" for r in self.ranks)
        }
        if (self.path / manifest.MANIFEST_FILE).exists():
            identity["manifestSha256"] = sha256_file(self.path / manifest.MANIFEST_FILE)
        return {"model": model_inputs, "checkpoint": identity}


def compute_model_identity(model: Path) -> dict[str, Any]:
    """Return a model's identity: its content, and its manifest's inputs.

    Raises:
        ModelError: a checkpoint or an engine in the model's place.
        ManifestError: the model's files are not those of its manifest.
    """
    refuse_other_artefact(model)
    return dict(identify_model(model)["model"])


def _read_model_quantization(path: Path, config: dict[str, Any]) -> tuple[str | None, str | None]:
    file = path / "hf_quant_config.json"
    if file.is_file():
        section = _read_json_file(file, "model").get("quantization")
    else:
        section = config.get("quantization_config")
    if not isinstance(section, dict):
        return None, None
    try:
        return _require_name(section.get("quant_algo")), _require_name(section.get("kv_cache_quant_algo"))
    except ValueError as e:
        raise ModelError(f"quantization: {e}", where=str(path)) from e


def _require_name(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not a name")


def _require_rank_count(value: Any) -> int:
    # A larger number is invalid, and would make the search for the ranks' files long.
    if type(value) is int and 1 <= value <= 1024:
        return value
    raise ValueError(f"{value!r} is not a number of ranks")


def _read_json_file(path: Path, artefact: str) -> dict[str, Any]:
    error = CheckpointError if artefact == "checkpoint" else ModelError
    missing = error(f"no {path.name}: not a {artefact}", where=str(path.parent))
    return read_json_object(path, error, missing=missing)
