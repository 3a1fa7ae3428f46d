"""Engine of kind ``reference`` → its models' configurations and their model.py.

preprocessing    text or messages → ids
tensorrt_llm     ids → ids, decoupled, continuous batching
postprocessing   ids → text, chunk by chunk
ensemble         the one to ask
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from enginix.errors import RepositoryError
from enginix.triton import config, contract
from enginix.triton.options import Options, batch_size
from enginix.triton.reference_engine import EngineFacts

CLASSES = {
    "preprocessing": "Preprocessing",
    "tensorrt_llm": "TensorrtLlm",
    "postprocessing": "Postprocessing",
}


def configurations(engine: EngineFacts, options: Options, code: Path) -> dict[str, Any]:
    """The ``ModelConfig`` message of each model; ``options`` are resolved, nothing in them is ``None``."""
    models = contract.reference()
    batch = options.max_batch_size
    assert batch is not None and options.max_tokens_limit is not None
    tokenizer = {"enginix_path": str(code), "tokenizer_dir": str(engine.tokenizer)}
    lengths = {"max_tokens_limit": str(options.max_tokens_limit), "max_seq_len": str(engine.max_seq_len)}
    end_ids = ",".join(map(str, engine.end_ids))
    return {
        "preprocessing": config.model(
            models["preprocessing"],
            max_batch_size=batch,
            instances=options.preprocessing_instances,
            # Without one the request goes to the instance at once, and no thread of the queue wakes first.
            dynamic_batching=bool(options.max_queue_delay_microseconds or options.max_queue_size),
            preferred_batch_size=True,
            max_queue_delay_microseconds=options.max_queue_delay_microseconds,
            max_queue_size=options.max_queue_size,
            parameters=tokenizer
            | lengths
            | {
                "add_special_tokens": _bool(options.add_special_tokens),
                "end_ids": end_ids,
                "pad_id": str(engine.pad_id),
            },
        ),
        "tensorrt_llm": config.model(
            models["tensorrt_llm"],
            max_batch_size=batch,
            instances=1,
            # Requests are batched as they run, by the executor's scheduler.
            dynamic_batching=False,
            decoupled=True,
            parameters=lengths
            | {
                "enginix_path": str(code),
                "gpt_model_type": "inflight_fused_batching",
                "gpt_model_path": str(engine.checkpoint),
                "max_beam_width": "1",
                "exclude_input_in_output": _bool(options.exclude_input_in_output),
                "cancellation_check_period_ms": "100",
                "end_ids": end_ids,
                "max_queue_size": str(options.max_queue_size),
                "device": options.device,
            },
        ),
        "postprocessing": config.model(
            models["postprocessing"],
            max_batch_size=batch,
            instances=options.postprocessing_instances,
            # With one instance, without a queue: a queue would drop the chunks of a client that has gone,
            # which fails the ensemble with its tensorrt_llm step under way; Triton 2.51 then never finishes
            # that request, and cannot exit cleanly. With several, chunks of one answer must not overtake
            # each other.
            dynamic_batching=options.postprocessing_instances > 1,
            preserve_ordering=True,
            parameters=tokenizer | {"skip_special_tokens": _bool(options.skip_special_tokens)},
        ),
        "ensemble": config.ensemble(models["ensemble"], max_batch_size=batch),
    }


def resolved(engine: EngineFacts, options: Options) -> Options:
    batch = batch_size(engine.directory, engine.max_batch_size, options)
    # A prompt has at least one token.
    most = engine.max_seq_len - 1 if engine.max_seq_len else 2**31 - 1
    limit = options.max_tokens_limit or most
    if limit > most:
        raise RepositoryError(
            f"max_tokens_limit: {limit} is above {most}; the engine's max_seq_len is {engine.max_seq_len}",
            where=str(engine.directory),
            fix=f"--max-tokens-limit {most} or less",
        )
    return Options(**{**asdict(options), "max_batch_size": batch, "max_tokens_limit": limit})


def fill(directory: Path) -> None:
    """Writes the model.py of each model."""
    text = resources.files("enginix.triton").joinpath("shims/model.py.txt").read_text("utf-8")
    for name, kind in CLASSES.items():
        shim = text.replace("@MODULE@", name).replace("@CLASS@", kind)
        (directory / name / "1" / "model.py").write_text(shim, "utf-8")


def _bool(value: bool) -> str:
    return "true" if value else "false"
