"""The Triton repository of an engine of kind ``reference``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from enginix.kinds.reference import reference_models
from enginix.kinds.reference.served_engine import read_reference_engine
from enginix.manifest import Manifest
from enginix.triton import contract
from enginix.triton.options import RepositoryOptions
from enginix.triton.repository_content import RepositoryContent, refuse_changed_options

UNSUPPORTED_OPTIONS = (
    "preprocessing_instances",
    "postprocessing_instances",
    "max_queue_delay_microseconds",
    "interpreter",
)


def prepare_content(
    directory: Path,
    engine_manifest: Manifest,
    options: RepositoryOptions,
    models: Any,
    rootfs: Path | None,
    code: Path,
) -> RepositoryContent:
    """See enginix.triton.repository_content.ContentModule."""
    engine = read_reference_engine(directory)
    refuse_changed_options(options, UNSUPPORTED_OPTIONS, "reference")
    resolved = reference_models.resolve_reference_options(engine, options)
    return RepositoryContent(
        reference_models.build_reference_configs(engine, resolved, code),
        contract.load_reference_contract(),
        engine.max_batch_size,
        {name: value for name, value in asdict(resolved).items() if name not in UNSUPPORTED_OPTIONS},
        reference_models.write_model_shims,
    )


def read_contract(options: Mapping[str, Any]) -> Mapping[str, contract.ModelContract]:
    """Return the contract of every repository of this kind."""
    return contract.load_reference_contract()
