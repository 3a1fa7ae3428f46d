"""The Triton repository of an engine of kind ``reference``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from enginix.kinds.reference import reference_models
from enginix.kinds.reference.served_engine import read_reference_engine
from enginix.triton import contract
from enginix.triton.repository_content import ContentRequest, RepositoryContent, refuse_changed_options

UNSUPPORTED_OPTIONS = (
    "preprocessing_instances",
    "postprocessing_instances",
    "max_queue_delay_microseconds",
    "interpreter",
)


def prepare_content(request: ContentRequest) -> RepositoryContent:
    """See enginix.triton.repository_content.ContentModule."""
    engine = read_reference_engine(request.directory)
    refuse_changed_options(request.options, UNSUPPORTED_OPTIONS, "reference")
    resolved = reference_models.resolve_reference_options(engine, request.options)
    return RepositoryContent(
        reference_models.build_reference_configs(engine, resolved, request.code),
        contract.load_reference_contract(),
        engine.max_batch_size,
        {name: value for name, value in asdict(resolved).items() if name not in UNSUPPORTED_OPTIONS},
        reference_models.write_model_shims,
    )


def read_contract(options: Mapping[str, Any]) -> Mapping[str, contract.ModelContract]:
    return contract.load_reference_contract()
