"""Convert an engine of kind ``llmapi`` to the one model of NVIDIA's llmapi repository.

    tensorrt_llm/config.pbtxt         NVIDIA's tensors; batching and decoupling written out
    tensorrt_llm/1/model.yaml         the same two again, and the arguments of TensorRT-LLM's LLM class
    tensorrt_llm/1/{nvidia_model,helpers}.py  links into the runtime's image
    tensorrt_llm/1/model.py           adds messages to NVIDIA's model

Upstream leaves batching and decoupling to auto-completion, which its own launcher switches off: streaming
then fails at the first request. With auto-completion on, values that differ are fatal. Here both files have
the same values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginix.errors import RepositoryError
from enginix.triton import config, contract

MODEL_YAML = "model.yaml"
# ``triton_config.cancellation_check_period_ms`` of upstream's model.py.
CANCELLATION_MS = 100


def build_llmapi_config(*, decoupled: bool, chat: Mapping[str, str] | None = None) -> Any:
    """Return the ``ModelConfig`` message; without Triton's batching, as the LLM class batches itself.

    Args:
        chat: parameters of the model.py that takes messages; ``None`` uses NVIDIA's alone.
    """
    return config.build_model_config(
        contract.load_llmapi_contract(chat=chat is not None)["tensorrt_llm"],
        max_batch_size=0,
        instances=1,
        decoupled=decoupled,
        dynamic_batching=False,
        parameters=chat or {},
    )


def build_model_yaml(engine: Path, *, decoupled: bool) -> dict[str, Any]:
    """Return the content of ``model.yaml``.

    Raises:
        RepositoryError: the engine's arguments are missing or unreadable.
    """
    path = engine / "llm_args.yaml"
    try:
        arguments = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise RepositoryError(f"unreadable: {e}", where=str(path), fix="build the engine again") from e
    if not isinstance(arguments, dict) or not (engine / "model").is_dir():
        raise RepositoryError(
            "model or arguments are missing", where=str(engine), fix="build the engine again"
        )
    return {
        **arguments,
        "model": str(engine / "model"),
        "tokenizer": str(engine / "tokenizer"),
        "backend": "pytorch",
        "trust_remote_code": False,
        "triton_config": {
            "max_batch_size": 0,
            "decoupled": decoupled,
            "cancellation_check_period_ms": CANCELLATION_MS,
        },
    }


def check_model_yaml(model: Path, model_config: Any) -> None:
    """Compare ``model.yaml`` with the configuration beside it.

    Raises:
        RepositoryError: the file is unreadable, a key is missing, or the two disagree.
    """
    path = model / "1" / MODEL_YAML
    try:
        described = json.loads(path.read_text("utf-8"))
        settings = described["triton_config"]
        batch, decoupled = settings["max_batch_size"], settings["decoupled"]
    except (OSError, ValueError, RecursionError) as e:
        raise RepositoryError(
            f"unreadable as JSON: {e}", where=str(path), fix="build the repository again"
        ) from e
    except (KeyError, TypeError) as e:
        raise RepositoryError(
            "triton_config lacks max_batch_size or decoupled, which model.py requires",
            where=str(path),
            fix='write "triton_config": {"max_batch_size": 0, "decoupled": true}',
        ) from e
    written = model_config.model_transaction_policy.decoupled
    for key, yaml_value, pbtxt_value in (
        ("max_batch_size", batch, model_config.max_batch_size),
        ("decoupled", decoupled, written),
    ):
        if type(yaml_value) is not type(pbtxt_value) or yaml_value != pbtxt_value:
            raise RepositoryError(
                f"triton_config.{key}: {json.dumps(yaml_value)}, but {config.FILE} says "
                f"{json.dumps(pbtxt_value)}",
                where=str(path),
                fix="make them equal; Triton refuses the model with auto-completion, and fails at the first "
                "stream without",
            )
    if batch != 0:
        raise RepositoryError(
            f"triton_config.max_batch_size: {batch}, but this model does not batch", where=str(path), fix="0"
        )
