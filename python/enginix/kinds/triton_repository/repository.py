"""Convert an engine of any kind to a Triton model repository.

Of kind ``reference``:

    <repository>/
      enginix.json                      plain files at the top are ignored by Triton
      tensorrt_llm/{config.pbtxt,1/model.py}
      ensemble/{config.pbtxt,1/model.py}

Engine and tokenizer stay outside, named by absolute path: Triton takes a directory at the top for a model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import enginix
from enginix import manifest
from enginix.errors import ManifestError, UsageError
from enginix.files import new_directory, sha256_file
from enginix.kinds.llmapi import triton_model
from enginix.kinds.reference import reference_models
from enginix.kinds.reference.served_engine import ReferenceEngine, read_reference_engine
from enginix.kinds.tensorrt import tensorrt_models
from enginix.kinds.triton_repository.validate import validate_repository
from enginix.manifest import Manifest
from enginix.triton import config, contract
from enginix.triton.options import RepositoryOptions, resolve_batch_size

KINDS = ("reference", "tensorrt", "llmapi")
# Triton allows more characters in model names; these are safe in paths and URLs.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class RepositoryContent:
    """A repository before it is written.

    Attributes:
        configs: ``ModelConfig`` message of each model.
        known: the contract to check the configurations against.
        max_batch_size: the engine's limit.
        options: options for the manifest.
        fill: writes the files beside the configurations.
    """

    configs: Mapping[str, Any]
    known: Mapping[str, contract.ModelContract]
    max_batch_size: int | None
    options: dict[str, Any]
    fill: Callable[[Path], None]


def build_triton_repository(
    engine_directory: Path,
    out: Path,
    options: RepositoryOptions | None = None,
    *,
    enginix_path: Path | None = None,
    add_models: Sequence[Path] = (),
    models: tensorrt_models.NvidiaModelOptions | None = None,
    rootfs: Path | None = None,
) -> dict[str, Any]:
    """Write the repository of an engine to ``out``, after validating it.

    Args:
        enginix_path: directory with the enginix package that the models of kind ``reference`` import; the
            running one by default.
        add_models: model directories to add, as links.
        models: options of NVIDIA's models, for the kinds ``tensorrt`` and ``llmapi``.
        rootfs: root file system of their runtime's image, with NVIDIA's model.py; without it links lead to
            paths inside the image.

    Returns:
        The repository's options, as in its manifest.

    Raises:
        RepositoryError, ManifestError, UsageError: the repository is invalid, and is not written.
    """
    directory = Path(os.path.abspath(engine_directory))
    engine_manifest = manifest.read_manifest(directory, "engine")
    options, models = options or RepositoryOptions(), models or tensorrt_models.NvidiaModelOptions()
    code = Path(os.path.abspath(enginix_path or Path(enginix.__file__).parents[1]))
    if engine_manifest.kind == "reference":
        if models != tensorrt_models.NvidiaModelOptions():
            raise UsageError(
                "options of NVIDIA's models for an engine of kind reference",
                where=str(directory),
                fix="leave them out",
            )
        parts = _prepare_reference(read_reference_engine(directory), options, code)
    elif engine_manifest.kind == "tensorrt":
        parts = _prepare_tensorrt(
            tensorrt_models.read_tensorrt_engine(directory, engine_manifest), options, models, rootfs, code
        )
    elif engine_manifest.kind == "llmapi":
        parts = _prepare_llmapi(directory, options, models, rootfs, code)
    else:
        raise ManifestError(
            f"kind {engine_manifest.kind!r} has no Triton repository",
            where=str(directory),
            fix=f"build the engine with --kind {' or '.join(KINDS)}",
        )
    with new_directory(out) as partial:
        for name, message in parts.configs.items():
            (partial / name / "1").mkdir(parents=True)
            (partial / name / config.FILE).write_text(config.render_pbtxt(message), "utf-8")
        parts.fill(partial)
        for model in add_models:
            _link_added_model(partial, model)
        validate_repository(partial, known=parts.known, max_batch_size=parts.max_batch_size)
        described = _describe_repository(directory, engine_manifest, parts.options, add_models)
        described.write(partial)
    return described.options


def _prepare_reference(engine: ReferenceEngine, options: RepositoryOptions, code: Path) -> RepositoryContent:
    unsupported = ("preprocessing_instances", "postprocessing_instances", "max_queue_delay_microseconds")
    _refuse_changed_options(options, unsupported, "reference")
    resolved = reference_models.resolve_reference_options(engine, options)
    return RepositoryContent(
        reference_models.build_reference_configs(engine, resolved, code),
        contract.load_reference_contract(),
        engine.max_batch_size,
        {name: value for name, value in asdict(resolved).items() if name not in unsupported},
        reference_models.write_model_shims,
    )


def _prepare_tensorrt(
    engine: tensorrt_models.TensorrtEngine,
    options: RepositoryOptions,
    models: tensorrt_models.NvidiaModelOptions,
    rootfs: Path | None,
    code: Path,
) -> RepositoryContent:
    _refuse_changed_options(options, ("device", "max_tokens_limit", "ensemble_instances"), "tensorrt")
    batch = resolve_batch_size(engine.directory, engine.max_batch_size, options)
    resolved = RepositoryOptions(**{**asdict(options), "max_batch_size": batch})
    nvidia_options = asdict(models) | {"parameters": dict(models.parameters)}
    names = {name: name for name in ("preprocessing", "postprocessing", tensorrt_models.BLS)}
    around = {"preprocessing": "Preprocessing", tensorrt_models.BLS: "Bls"} if models.chat else {}
    return RepositoryContent(
        tensorrt_models.build_tensorrt_configs(engine, resolved, models, code),
        contract.build_tensorrt_contract(models.datatypes(), chat=models.chat),
        engine.max_batch_size,
        {**asdict(resolved), **nvidia_options},
        lambda directory: tensorrt_models.link_models(directory, rootfs, names, around),
    )


def _prepare_llmapi(
    engine: Path,
    options: RepositoryOptions,
    models: tensorrt_models.NvidiaModelOptions,
    rootfs: Path | None,
    code: Path,
) -> RepositoryContent:
    if options != RepositoryOptions() or models != tensorrt_models.NvidiaModelOptions(
        decoupled=models.decoupled, chat=models.chat
    ):
        raise UsageError(
            "the kind llmapi supports decoupled and chat only; its model batches and queues by itself",
            where=str(engine),
            fix="pass arguments of the LLM class to enginix build (--llm-arg)",
        )

    def fill(directory: Path) -> None:
        triton_model.write_model_yaml(
            directory / contract.EXECUTOR / "1",
            triton_model.build_model_yaml(engine, decoupled=models.decoupled),
        )
        around = {contract.EXECUTOR: "Llmapi"} if models.chat else {}
        tensorrt_models.link_models(directory, rootfs, {contract.EXECUTOR: "llmapi"}, around)

    chat = {"enginix_path": str(code), "tokenizer_dir": str(engine / "tokenizer")} if models.chat else None
    return RepositoryContent(
        {contract.EXECUTOR: triton_model.build_llmapi_config(decoupled=models.decoupled, chat=chat)},
        contract.load_llmapi_contract(chat=models.chat),
        None,
        {"decoupled": models.decoupled, "chat": models.chat},
        fill,
    )


def _refuse_changed_options(options: RepositoryOptions, names: Sequence[str], kind: str) -> None:
    for name in names:
        if getattr(options, name) != getattr(RepositoryOptions(), name):
            raise UsageError(
                f"not supported by the kind {kind}", where=f"--{name.replace('_', '-')}", fix="leave it out"
            )


def _describe_repository(
    engine: Path, engine_manifest: Manifest, options: dict[str, Any], add_models: Sequence[Path]
) -> Manifest:
    return Manifest(
        artefact="triton-repository",
        name=engine_manifest.name,
        kind=engine_manifest.kind,
        model=engine_manifest.model,
        inputs={
            "engine": {
                "name": engine_manifest.name,
                "manifestSha256": sha256_file(engine / manifest.MANIFEST_FILE),
            }
        },
        options={**options, "add_models": sorted(p.name for p in add_models)},
        target=engine_manifest.target,
        runtime=engine_manifest.runtime,
        results={
            key: engine_manifest.results[key] for key in ("gates", "golden") if key in engine_manifest.results
        },
    )


def _link_added_model(directory: Path, model: Path) -> None:
    name = model.name
    if not model.is_dir() or not NAME.fullmatch(name):
        raise UsageError("not a directory with a valid model name", where=f"--add-model {model}")
    if (directory / name).exists():
        raise UsageError(f"the repository has a model {name} already", where=f"--add-model {model}")
    (directory / name).symlink_to(os.path.abspath(model))
