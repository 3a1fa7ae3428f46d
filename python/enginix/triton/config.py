"""Render and parse ``config.pbtxt`` through Triton's own protobuf schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped,unused-ignore]
from tritonclient.grpc import model_config_pb2 as schema

from enginix.errors import RepositoryError
from enginix.files import refuse_damage
from enginix.triton.contract import ModelContract, TensorContract
from enginix.wording import suggest_name

FILE = "config.pbtxt"

_PLACEHOLDER = re.compile(r"\$\{[^}\n]*\}?")
_KEY = re.compile(r"([A-Za-z_]\w*)\s*[:{\[]")
_NO_FIELD = re.compile(r'(\d+):(\d+) : .*Message type "([\w.]+)" has no field named "(\w+)"')


def build_model_config(
    model: ModelContract,
    *,
    backend: str = "python",
    max_batch_size: int,
    instances: int,
    parameters: Mapping[str, str],
    decoupled: bool | None = None,
    dynamic_batching: bool = True,
    preferred_batch_size: bool = False,
    max_queue_delay_microseconds: int = 0,
    max_queue_size: int = 0,
    preserve_ordering: bool = False,
) -> Any:
    """Return the ``ModelConfig`` message of a model on CPU instances; the C++ backend chooses its GPUs.

    Args:
        decoupled: several responses for a request; ``None`` leaves it out of the configuration.
        dynamic_batching: let requests wait for each other; without it each goes to an instance at once.
        preferred_batch_size: wait for whole batches of ``max_batch_size``, as the contract's models do.
        preserve_ordering: send responses in the order of their requests, across instances.
    """
    config = schema.ModelConfig(name=model.name, backend=backend, max_batch_size=max_batch_size)
    _add_tensors(config, model)
    if not dynamic_batching:
        return _complete_config(config, instances, parameters, decoupled)
    batching = config.dynamic_batching
    if preferred_batch_size:
        batching.preferred_batch_size.append(max_batch_size)
        batching.max_queue_delay_microseconds = max_queue_delay_microseconds
    if max_queue_size:
        batching.default_queue_policy.max_queue_size = max_queue_size
    batching.preserve_ordering = preserve_ordering
    batching.SetInParent()
    return _complete_config(config, instances, parameters, decoupled)


def _complete_config(
    config: Any, instances: int, parameters: Mapping[str, str], decoupled: bool | None
) -> Any:
    config.instance_group.add(count=instances, kind=schema.ModelInstanceGroup.KIND_CPU)
    for key, value in sorted(parameters.items()):
        config.parameters[key].string_value = value
    if decoupled is not None:
        # Written even if false: Python models require the key.
        config.model_transaction_policy.decoupled = decoupled
        config.model_transaction_policy.SetInParent()
    return config


def build_ensemble_config(model: ModelContract, *, max_batch_size: int) -> Any:
    """Return a ``ModelConfig`` message of an ensemble; by Triton's rules without instances and backend."""
    config = schema.ModelConfig(name=model.name, platform="ensemble", max_batch_size=max_batch_size)
    _add_tensors(config, model)
    for step in model.steps:
        step_config = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        for key, value in sorted(step.inputs.items()):
            step_config.input_map[key] = value
        for key, value in sorted(step.outputs.items()):
            step_config.output_map[key] = value
    return config


def _add_tensors(config: Any, model: ModelContract) -> None:
    for tensor in model.inputs:
        input_config = config.input.add(
            name=tensor.name,
            data_type=_datatype_number(tensor),
            dims=tensor.dims,
            optional=tensor.optional,
            allow_ragged_batch=tensor.ragged,
        )
        if tensor.scalar:
            input_config.reshape.SetInParent()
    for tensor in model.outputs:
        config.output.add(name=tensor.name, data_type=_datatype_number(tensor), dims=tensor.dims)


def _datatype_number(tensor: TensorContract) -> int:
    return int(schema.DataType.Value(f"TYPE_{tensor.type}"))


def remove_batching(config: Any) -> Any:
    """Return a configuration without Triton's batching: rows become the first dimension of each tensor.

    Clients see no difference (``[-1, 1]``). With batching, Triton's core passes a request on in which all
    inputs have no rows (shape ``[0, 1]``); the Python backend of Triton 2.51 crashes on it, or never answers.
    Our models read ``max_batch_size`` from the parameters then.
    """
    unbatched_config = schema.ModelConfig()
    unbatched_config.CopyFrom(config)
    unbatched_config.max_batch_size = 0
    unbatched_config.parameters["max_batch_size"].string_value = str(config.max_batch_size)
    for tensor in (*unbatched_config.input, *unbatched_config.output):
        tensor.dims[:] = [-1, *tensor.dims]
        tensor.ClearField("reshape")
    for tensor in unbatched_config.input:
        tensor.ClearField("allow_ragged_batch")
    return unbatched_config


def type_name(number: int) -> str:
    """Return the name of a data type's number, for instance ``TYPE_INT32``."""
    return str(schema.DataType.Name(number))


def render_pbtxt(config: Any) -> str:
    """Render a ``config.pbtxt``, and parse it back to prove that Triton reads the same message.

    Raises:
        RepositoryError: the text parses to another message, which is a bug.
    """
    text: str = text_format.MessageToString(config)
    if parse_pbtxt(text, f"{config.name}/{FILE}") != config:
        raise RepositoryError("the rendered text parses to another message", where=f"{config.name}/{FILE}")
    return text


def read_pbtxt(path: Path) -> Any:
    """Read the ``ModelConfig`` message of a file.

    Raises:
        RepositoryError: see :func:`parse_pbtxt`; or the file cannot be read.
    """
    with refuse_damage(RepositoryError, path):
        text = path.read_text("utf-8")
    return parse_pbtxt(text, str(path))


def parse_pbtxt(text: str, where: str) -> Any:
    """Parse a ``config.pbtxt`` as Triton does, with errors that name the key.

    Raises:
        RepositoryError: an unresolved ``${…}``, an unknown key (with the nearest known one), a parameter
            that is not a ``string_value``, or other text that the schema refuses.
    """
    for number, line in enumerate(text.splitlines(), 1):
        code = line.split("#", 1)[0]
        if placeholder := _PLACEHOLDER.search(code):
            keys = _KEY.findall(code[: placeholder.start()])
            raise RepositoryError(
                f"line {number}: {keys[-1] if keys else 'value'}: placeholder {placeholder[0]} was never "
                "replaced",
                where=where,
                fix="write the value; enginix triton-repo leaves no placeholder",
            )
    try:
        return text_format.Parse(text, schema.ModelConfig())
    except text_format.ParseError as e:
        raise _explain_parse_error(str(e), where) from e
    except RecursionError as e:
        raise RepositoryError("nested too deeply", where=where) from e


def _explain_parse_error(message: str, where: str) -> RepositoryError:
    match = _NO_FIELD.search(message)
    if match is None:
        return RepositoryError(f"line {message}", where=where, fix="correct the value; Triton refuses it too")
    line, _, kind, key = match.groups()
    if kind.endswith(".ModelParameter"):
        return RepositoryError(
            f"line {line}: {key}: parameters are string_value only",
            where=where,
            fix='write { string_value: "…" }, numbers and booleans too',
        )
    descriptor = _find_descriptor(kind)
    known = [f.name for f in descriptor.fields] if descriptor else []
    return RepositoryError(
        f"line {line}: {key}: unknown key of {kind.rsplit('.', 1)[-1]}",
        where=where,
        fix=suggest_name(key, known, "remove it"),
    )


def _find_descriptor(full_name: str) -> Any:
    def search(message: Any) -> Any:
        if message.full_name == full_name:
            return message
        return next((f for nested in message.nested_types if (f := search(nested))), None)

    file = schema.DESCRIPTOR
    return next((f for m in file.message_types_by_name.values() if (f := search(m))), None)
