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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import enginix
from enginix import manifest
from enginix.errors import ManifestError, UsageError
from enginix.files import sha256_file
from enginix.integrity import require_unchanged
from enginix.kinds.registry import get_kind, list_triton_kinds, load_hook
from enginix.kinds.tensorrt import tensorrt_models
from enginix.kinds.triton_repository.validate import validate_repository
from enginix.manifest import Manifest
from enginix.runtime.table import find_runtime, require_triton
from enginix.triton import config
from enginix.triton.options import RepositoryOptions
from enginix.triton.repository_content import ContentModule, ContentRequest
from enginix.work_directory import new_directory

# Triton allows more characters in model names; these are safe in paths and URLs.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    kind = get_kind(engine_manifest.kind)
    if kind is None or kind.triton is None:
        raise ManifestError(
            f"kind {engine_manifest.kind!r} has no Triton repository",
            where=directory,
            fix=f"build the engine with --kind {' or '.join(list_triton_kinds())}",
        )
    if kind.runs_in_image and engine_manifest.runtime.get("id") is not None:
        require_triton(find_runtime(engine_manifest.runtime), str(directory))
    if not kind.runs_in_image and models != tensorrt_models.NvidiaModelOptions():
        raise UsageError(
            f"options of NVIDIA's models for an engine of kind {kind.name}",
            where=directory,
            fix="leave them out",
        )
    content_module: ContentModule = load_hook(kind.triton.repository)
    parts = content_module.prepare_content(
        ContentRequest(directory, engine_manifest, options, models, rootfs, code)
    )
    # After the content is read, which names what a change broke.
    require_unchanged(directory)
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
