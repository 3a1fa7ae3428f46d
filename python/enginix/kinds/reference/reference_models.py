"""Convert an engine of kind ``reference`` to its models' configurations and their model.py.

tensorrt_llm    ids → ids, decoupled, continuous batching
ensemble        text or messages → text, the model for clients
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from enginix.errors import RepositoryError
from enginix.kinds.reference.served_engine import ServedEngine
from enginix.triton import config, contract
from enginix.triton.options import RepositoryOptions, resolve_batch_size
from enginix.triton.parameters import as_text

# Model → module, and its class.
CLASSES = {
    contract.EXECUTOR: ("enginix.triton.models.tensorrt_llm", "TensorrtLlm"),
    contract.ENSEMBLE: ("enginix.triton.models.ensemble", "Ensemble"),
}


def build_reference_configs(engine: ServedEngine, options: RepositoryOptions, code: Path) -> dict[str, Any]:
    """Return the ``ModelConfig`` message of each model; ``options`` are resolved, without ``None``."""
    models = contract.load_reference_contract()
    batch = options.max_batch_size
    assert batch is not None and options.max_tokens_limit is not None
    shared = {
        "enginix_path": str(code),
        "max_tokens_limit": str(options.max_tokens_limit),
        "max_seq_len": str(engine.max_seq_len),
        "end_ids": ",".join(map(str, engine.end_ids)),
        "exclude_input_in_output": as_text(options.exclude_input_in_output),
        "cancellation_check_period_ms": "100",
    }

    def model(name: str, instances: int, parameters: dict[str, str]) -> Any:
        return config.build_model_config(
            models[name],
            max_batch_size=batch,
            instances=instances,
            # The executor's scheduler batches requests as they run.
            dynamic_batching=False,
            decoupled=True,
            parameters=shared | parameters,
        )

    executor = {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(engine.executed),
        "max_beam_width": "1",
        "max_queue_size": str(options.max_queue_size),
        "device": options.device,
    }
    ensemble = {
        "tokenizer_dir": str(engine.directory / "tokenizer"),
        "add_special_tokens": as_text(options.add_special_tokens),
        "skip_special_tokens": as_text(options.skip_special_tokens),
    }
    return {
        contract.EXECUTOR: model(contract.EXECUTOR, 1, executor),
        contract.ENSEMBLE: model(contract.ENSEMBLE, options.ensemble_instances, ensemble),
    }


def resolve_reference_options(engine: ServedEngine, options: RepositoryOptions) -> RepositoryOptions:
    batch = resolve_batch_size(engine.directory, engine.max_batch_size, options)
    # A prompt has at least one token.
    max_tokens = engine.max_seq_len - 1 if engine.max_seq_len else 2**31 - 1
    limit = options.max_tokens_limit or max_tokens
    if limit > max_tokens:
        raise RepositoryError(
            f"max_tokens_limit: {limit} is above {max_tokens}; the engine's max_seq_len is "
            f"{engine.max_seq_len}",
            where=str(engine.directory),
            fix=f"--max-tokens-limit {max_tokens} or less",
        )
    return RepositoryOptions(**{**asdict(options), "max_batch_size": batch, "max_tokens_limit": limit})


def write_model_shims(directory: Path, classes: Mapping[str, tuple[str, str]] = CLASSES) -> None:
    """Write the model.py of each model.

    Args:
        classes: model → module, and its class.
    """
    text = resources.files("enginix.triton").joinpath("shims/model.py.txt").read_text("utf-8")
    for name, (module, kind) in classes.items():
        shim = text.replace("@MODULE@", module).replace("@CLASS@", kind)
        (directory / name / "1" / "model.py").write_text(shim, "utf-8")
