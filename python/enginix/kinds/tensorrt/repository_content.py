"""The Triton repository of an engine of kind ``tensorrt``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from enginix.kinds.tensorrt import tensorrt_models
from enginix.tables import load_table
from enginix.triton import contract
from enginix.triton.options import RepositoryOptions, resolve_batch_size
from enginix.triton.repository_content import ContentRequest, RepositoryContent, refuse_changed_options


def prepare_content(request: ContentRequest) -> RepositoryContent:
    """See enginix.triton.repository_content.ContentModule."""
    options, models = request.options, request.models
    engine = tensorrt_models.read_tensorrt_engine(request.directory, request.manifest)
    refuse_changed_options(
        options, ("device", "max_tokens_limit", "ensemble_instances", "interpreter"), "tensorrt"
    )
    batch = resolve_batch_size(engine.directory, engine.max_batch_size, options)
    resolved = RepositoryOptions(**{**asdict(options), "max_batch_size": batch})
    described = {name: value for name, value in asdict(resolved).items() if name != "interpreter"}
    nvidia_options = asdict(models) | {"parameters": dict(models.parameters)}
    names = {name: name for name in ("preprocessing", "postprocessing", tensorrt_models.BLS)}
    around = {"preprocessing": "Preprocessing", tensorrt_models.BLS: "Bls"} if models.chat else {}
    return RepositoryContent(
        tensorrt_models.build_tensorrt_configs(engine, resolved, models, request.code),
        contract.build_tensorrt_contract(models.datatypes(), chat=models.chat),
        engine.max_batch_size,
        {**described, **nvidia_options},
        lambda out: tensorrt_models.link_models(out, request.rootfs, names, around),
    )


def read_contract(options: Mapping[str, Any]) -> Mapping[str, contract.ModelContract]:
    datatypes = load_table("triton_contract")["datatypes"]
    return contract.build_tensorrt_contract(
        {name: str(options.get(name)) for name in datatypes if name in options},
        chat=options.get("chat", False) is True,
    )
