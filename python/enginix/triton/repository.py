"""Engine → Triton model repository, for each kind of engine.

Of kind ``reference``:

    <repository>/
      enginix.json                      plain files at the top are ignored by Triton
      tensorrt_llm/{config.pbtxt,1/model.py}
      ensemble/{config.pbtxt,1/model.py}

Engine and tokenizer stay outside, named by absolute path: a directory at the top would be taken for a model.
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
from enginix.manifest import Manifest
from enginix.triton import config, contract, llmapi, reference, tensorrt
from enginix.triton.options import Options, batch_size
from enginix.triton.reference_engine import EngineFacts, read_engine
from enginix.triton.validate import validate

KINDS = ("reference", "tensorrt", "llmapi")
# Triton's own rule for model names would allow more; these are safe in paths and URLs.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Parts:
    """A repository before it is written.

    Attributes:
        configs: ``ModelConfig`` message of each model.
        known: the contract that they are checked against.
        max_batch_size: the engine's limit.
        options: as the manifest records them.
        fill: writes what belongs beside the configurations.
    """

    configs: Mapping[str, Any]
    known: Mapping[str, contract.Model]
    max_batch_size: int | None
    options: dict[str, Any]
    fill: Callable[[Path], None]


def build(
    engine_directory: Path,
    out: Path,
    options: Options | None = None,
    *,
    enginix_path: Path | None = None,
    add_models: Sequence[Path] = (),
    models: tensorrt.Models | None = None,
    rootfs: Path | None = None,
) -> dict[str, Any]:
    """Writes the repository of an engine to ``out``; validated before it appears there.

    Args:
        enginix_path: directory that holds the enginix package which the models of kind ``reference`` import;
            the running one by default.
        add_models: model directories to put beside, as links.
        models: of the kinds ``tensorrt`` and ``llmapi``.
        rootfs: root file system of their runtime's image, where NVIDIA's model.py are; without it links lead
            to their place inside the image.

    Returns:
        The repository's options as its manifest has them.

    Raises:
        RepositoryError, ManifestError, UsageError: nothing is written.
    """
    directory = Path(os.path.abspath(engine_directory))
    found = manifest.read(directory, "engine")
    options, models = options or Options(), models or tensorrt.Models()
    code = Path(os.path.abspath(enginix_path or Path(enginix.__file__).parents[1]))
    if found.kind == "reference":
        if models != tensorrt.Models():
            raise UsageError(
                "options of NVIDIA's models for an engine of kind reference",
                where=str(directory),
                fix="leave them out",
            )
        parts = _reference(read_engine(directory), options, code)
    elif found.kind == "tensorrt":
        parts = _tensorrt(tensorrt.read_engine(directory, found), options, models, rootfs, code)
    elif found.kind == "llmapi":
        parts = _llmapi(directory, options, models, rootfs, code)
    else:
        raise ManifestError(
            f"kind {found.kind!r} has no Triton repository",
            where=str(directory),
            fix=f"build the engine with --kind {' or '.join(KINDS)}",
        )
    with new_directory(out) as partial:
        for name, message in parts.configs.items():
            (partial / name / "1").mkdir(parents=True)
            (partial / name / config.FILE).write_text(config.render(message), "utf-8")
        parts.fill(partial)
        for model in add_models:
            _add(partial, model)
        validate(partial, known=parts.known, max_batch_size=parts.max_batch_size)
        described = _manifest(directory, found, parts.options, add_models)
        described.write(partial)
    return described.options


def _reference(engine: EngineFacts, options: Options, code: Path) -> Parts:
    others = ("preprocessing_instances", "postprocessing_instances", "max_queue_delay_microseconds")
    _only(options, others, "reference")
    resolved = reference.resolved(engine, options)
    return Parts(
        reference.configurations(engine, resolved, code),
        contract.reference(),
        engine.max_batch_size,
        {name: value for name, value in asdict(resolved).items() if name not in others},
        reference.fill,
    )


def _tensorrt(
    engine: tensorrt.TensorrtEngine,
    options: Options,
    models: tensorrt.Models,
    rootfs: Path | None,
    code: Path,
) -> Parts:
    _only(options, ("device", "max_tokens_limit", "ensemble_instances"), "tensorrt")
    batch = batch_size(engine.directory, engine.max_batch_size, options)
    resolved = Options(**{**asdict(options), "max_batch_size": batch})
    own = asdict(models) | {"parameters": dict(models.parameters)}
    names = {name: name for name in ("preprocessing", "postprocessing", tensorrt.BLS)}
    around = {"preprocessing": "Preprocessing", tensorrt.BLS: "Bls"} if models.chat else {}
    return Parts(
        tensorrt.configurations(engine, resolved, models, code),
        contract.tensorrt(models.datatypes(), chat=models.chat),
        engine.max_batch_size,
        {**asdict(resolved), **own},
        lambda directory: tensorrt.link_models(directory, rootfs, names, around),
    )


def _llmapi(
    engine: Path, options: Options, models: tensorrt.Models, rootfs: Path | None, code: Path
) -> Parts:
    if options != Options() or models != tensorrt.Models(decoupled=models.decoupled, chat=models.chat):
        raise UsageError(
            "the kind llmapi takes decoupled and chat only; its model batches and queues by itself",
            where=str(engine),
            fix="pass arguments of the LLM class to enginix build (--llm-arg)",
        )

    def fill(directory: Path) -> None:
        llmapi.write(
            directory / contract.EXECUTOR / "1", llmapi.model_yaml(engine, decoupled=models.decoupled)
        )
        around = {contract.EXECUTOR: "Llmapi"} if models.chat else {}
        tensorrt.link_models(directory, rootfs, {contract.EXECUTOR: "llmapi"}, around)

    chat = {"enginix_path": str(code), "tokenizer_dir": str(engine / "tokenizer")} if models.chat else None
    return Parts(
        {contract.EXECUTOR: llmapi.configuration(decoupled=models.decoupled, chat=chat)},
        contract.llmapi(chat=models.chat),
        None,
        {"decoupled": models.decoupled, "chat": models.chat},
        fill,
    )


def _only(options: Options, names: Sequence[str], kind: str) -> None:
    for name in names:
        if getattr(options, name) != getattr(Options(), name):
            raise UsageError(
                f"not of the kind {kind}", where=f"--{name.replace('_', '-')}", fix="leave it out"
            )


def _manifest(engine: Path, found: Manifest, options: dict[str, Any], add_models: Sequence[Path]) -> Manifest:
    return Manifest(
        artefact="triton-repository",
        name=found.name,
        kind=found.kind,
        model=found.model,
        inputs={"engine": {"name": found.name, "manifestSha256": sha256_file(engine / manifest.FILE)}},
        options={**options, "add_models": sorted(p.name for p in add_models)},
        target=found.target,
        runtime=found.runtime,
        results={key: found.results[key] for key in ("gates", "golden") if key in found.results},
    )


def _add(directory: Path, model: Path) -> None:
    name = model.name
    if not model.is_dir() or not NAME.fullmatch(name):
        raise UsageError("not a directory with a model's name", where=f"--add-model {model}")
    if (directory / name).exists():
        raise UsageError(f"the repository has a model {name} already", where=f"--add-model {model}")
    (directory / name).symlink_to(os.path.abspath(model))
