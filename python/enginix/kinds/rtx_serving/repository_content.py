"""The Triton repository of an engine of kind ``rtx``: kind ``reference``'s models over another executor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from enginix.kinds.reference import reference_models
from enginix.kinds.reference.repository_content import UNSUPPORTED_OPTIONS as REFERENCE_UNSUPPORTED
from enginix.kinds.reference.served_engine import ServedEngine, read_engine_end_ids
from enginix.kinds.rtx.checkpoint_support import require_engine_checkpoint
from enginix.kinds.rtx.engine_description import PLAN_FOLDER, read_engine_description
from enginix.triton import contract
from enginix.triton.models.detokenizer import load_tokenizer
from enginix.triton.repository_content import ContentRequest, RepositoryContent, refuse_changed_options

# A GPU is chosen when the server starts: enginix serve --gpus.
UNSUPPORTED_OPTIONS = (*(name for name in REFERENCE_UNSUPPORTED if name != "interpreter"), "device")
EXECUTOR = ("enginix.kinds.rtx_serving.rtx_executor", "RtxExecutor")
INTERPRETER = "interpreter_checkpoint"


def prepare_content(request: ContentRequest) -> RepositoryContent:
    """See enginix.triton.repository_content.ContentModule.

    Raises:
        ManifestError: the engine is damaged, or the interpreter's checkpoint is not the engine's.
        RepositoryError: the tokenizer is missing, or a limit is above the engine's.
        UsageError: an option that this kind does not have.
    """
    directory, options = request.directory, request.options
    refuse_changed_options(options, UNSUPPORTED_OPTIONS, "rtx")
    shape = read_engine_description(directory)
    load_tokenizer(directory / "tokenizer")
    engine = ServedEngine(
        directory=directory,
        manifest=request.manifest,
        executed=directory / PLAN_FOLDER,
        max_batch_size=shape.slots,
        max_seq_len=shape.max_seq_len,
        end_ids=read_engine_end_ids(request.manifest, directory / "tokenizer"),
    )
    resolved = reference_models.resolve_reference_options(
        engine, replace(options, max_batch_size=options.max_batch_size or shape.slots)
    )
    configs = reference_models.build_reference_configs(engine, resolved, request.code)
    parameters = configs[contract.EXECUTOR].parameters
    del parameters["device"]
    if options.interpreter is not None:
        require_engine_checkpoint(directory, options.interpreter)
        parameters[INTERPRETER].string_value = os.path.abspath(options.interpreter)
    recorded = {name: value for name, value in asdict(resolved).items() if name not in UNSUPPORTED_OPTIONS}
    # Its path is in the configuration; the manifest says who executes.
    recorded["interpreter"] = options.interpreter is not None
    return RepositoryContent(
        configs,
        read_contract(recorded),
        engine.max_batch_size,
        recorded,
        lambda out: reference_models.write_model_shims(
            out, {**reference_models.CLASSES, contract.EXECUTOR: EXECUTOR}
        ),
    )


def read_contract(options: Mapping[str, Any]) -> Mapping[str, contract.ModelContract]:
    models = contract.load_reference_contract()
    executor = models[contract.EXECUTOR]
    return {**models, contract.EXECUTOR: replace(executor, parameters=executor.parameters | {INTERPRETER})}
