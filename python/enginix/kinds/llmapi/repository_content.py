"""The Triton repository of an engine of kind ``llmapi``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginix.errors import UsageError
from enginix.files import dump_json, write_text
from enginix.kinds.llmapi import triton_model
from enginix.kinds.tensorrt import tensorrt_models
from enginix.triton import contract
from enginix.triton.options import RepositoryOptions
from enginix.triton.repository_content import ContentRequest, RepositoryContent


def prepare_content(request: ContentRequest) -> RepositoryContent:
    """See enginix.triton.repository_content.ContentModule.

    Raises:
        UsageError: an option that this kind does not support.
    """
    directory, models = request.directory, request.models
    if request.options != RepositoryOptions() or models != tensorrt_models.NvidiaModelOptions(
        decoupled=models.decoupled, chat=models.chat
    ):
        raise UsageError(
            "the kind llmapi supports decoupled and chat only; its model batches and queues by itself",
            where=str(directory),
            fix="pass arguments of the LLM class to enginix build (--llm-arg)",
        )

    def fill(out: Path) -> None:
        described = triton_model.build_model_yaml(directory, decoupled=models.decoupled)
        # JSON is YAML.
        write_text(out / contract.EXECUTOR / "1" / triton_model.MODEL_YAML, dump_json(described))
        around = {contract.EXECUTOR: "Llmapi"} if models.chat else {}
        tensorrt_models.link_models(out, request.rootfs, {contract.EXECUTOR: "llmapi"}, around)

    paths = {"enginix_path": str(request.code), "tokenizer_dir": str(directory / "tokenizer")}
    chat = paths if models.chat else None
    return RepositoryContent(
        {contract.EXECUTOR: triton_model.build_llmapi_config(decoupled=models.decoupled, chat=chat)},
        contract.load_llmapi_contract(chat=models.chat),
        None,
        {"decoupled": models.decoupled, "chat": models.chat},
        fill,
    )


def read_contract(options: Mapping[str, Any]) -> Mapping[str, contract.ModelContract]:
    return contract.load_llmapi_contract(chat=options.get("chat", False) is True)
