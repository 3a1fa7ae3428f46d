"""Validate a whole model repository before Triton reads it.

Every check is for a mistake that a real server either refuses with a message that does not name the key, or
accepts silently (docs/reference/triton.md lists both).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as schema

from enginix.errors import RepositoryError
from enginix.kinds.llmapi import triton_model
from enginix.tables import load_table
from enginix.triton import config
from enginix.triton.contract import ModelContract
from enginix.triton.suggestions import suggest_fix

# Kind reference's ensemble is a Python model; Triton's own ensembles have no instances.
TOKENIZER_MODELS = ("preprocessing", "postprocessing", "ensemble")
# What is wrong with a model, and how to fix it.
Mistake = tuple[str, str | None]
# A mistake behind its place.
PlacedMistake = tuple[str, str, str | None]
PATHS = ("tokenizer_dir", "gpt_model_path", "enginix_path", "interpreter_checkpoint")


def validate_repository(
    repository: Path, *, known: Mapping[str, ModelContract] | None = None, max_batch_size: int | None = None
) -> dict[str, Any]:
    """Check every model of ``repository`` and return the parsed configurations by name.

    Args:
        known: models with known tensors and parameter keys; others get the general checks only.
        max_batch_size: the engine's limit, which no model that runs it may exceed.

    Raises:
        RepositoryError: the first mistake; its fix lists the others.
    """
    if not repository.is_dir():
        raise RepositoryError("no such directory", where=repository)
    configs: dict[str, Any] = {}
    problems: list[PlacedMistake] = []
    for directory in sorted(p for p in repository.iterdir() if p.is_dir()):
        if not (directory / config.FILE).is_file():
            what = f"directory without {config.FILE}: Triton takes every directory here for a model"
            problems.append((directory.name, what, "move it out of the repository; plain files may stay"))
            continue
        try:
            configs[directory.name] = config.read_pbtxt(directory / config.FILE)
        except RepositoryError as e:
            problems.append((f"{directory.name}/{config.FILE}", e.what, e.fix))
    if not configs and not problems:
        problems.append((str(repository), "no model in it", "build it with enginix triton-repo"))
    for name, model_config in configs.items():
        problems += _check_model_directory(repository / name, model_config)
        mistakes = [*_check_model_config(name, model_config)]
        if known and name in known:
            mistakes += _check_interface(model_config, known[name])
        if max_batch_size is not None and model_config.max_batch_size > max_batch_size:
            what = f"max_batch_size: {model_config.max_batch_size} is above the engine's {max_batch_size}"
            fix = f"--max-batch-size {max_batch_size} or less, or build the engine with more"
            mistakes.append((what, fix))
        problems += [(name, *mistake) for mistake in mistakes]
    for name, model_config in configs.items():
        if model_config.HasField("ensemble_scheduling"):
            mistakes = [*_check_ensemble(model_config, configs)]
            problems += [(name, *mistake) for mistake in mistakes]
        if (repository / name / "1" / triton_model.MODEL_YAML).is_file():
            try:
                triton_model.check_model_yaml(repository / name, model_config)
            except RepositoryError as e:
                problems.append((f"{name}/1/{triton_model.MODEL_YAML}", e.what, e.fix))
    if problems:
        place, what, suggestion = problems[0]
        also = "".join(f"\n  also: {other}: {text}" for other, text, _ in problems[1:])
        raise RepositoryError(what, where=place, fix=(suggestion or "correct it") + also)
    return configs


def _check_model_directory(directory: Path, model_config: Any) -> Iterator[PlacedMistake]:
    name = directory.name
    if model_config.name != name:
        what = f"name: {model_config.name!r} is not the directory's name"
        yield name, what, f'write name: "{name}"'
    versions = [p for p in directory.iterdir() if p.is_dir() and p.name.isdigit() and int(p.name) > 0]
    if not versions:
        fix = f"create {name}/1, empty for an ensemble"
        yield name, "no numeric version directory", fix
    if model_config.backend == "python":
        for version in (v.name for v in versions if not _has_code(v / "model.py")):
            yield f"{name}/{version}", "no model.py, which the Python backend loads", None


def _check_model_config(name: str, model_config: Any) -> Iterator[Mistake]:
    is_ensemble = model_config.HasField("ensemble_scheduling")
    if is_ensemble and model_config.instance_group:
        yield "instance_group: an ensemble has no instances", "remove it"
    if is_ensemble and (model_config.backend or model_config.platform != "ensemble"):
        yield (
            f"backend: {model_config.backend or model_config.platform!r} on an ensemble",
            'write platform: "ensemble" only',
        )
    if not is_ensemble and not (model_config.backend or model_config.platform):
        yield "backend: missing", 'write backend: "python", or the one that runs the model'
    for size in model_config.dynamic_batching.preferred_batch_size:
        if size > model_config.max_batch_size:
            yield (
                f"preferred_batch_size: {size} is above max_batch_size {model_config.max_batch_size}",
                "lower it",
            )
    gpus = (schema.ModelInstanceGroup.KIND_GPU, schema.ModelInstanceGroup.KIND_AUTO)
    uses_gpu = any(g.kind in gpus for g in model_config.instance_group)
    if name in TOKENIZER_MODELS and not is_ensemble and uses_gpu:
        yield "instance_group kind: a tokenizer needs no GPU", "write kind: KIND_CPU"
    for kind, tensors in (("input", model_config.input), ("output", model_config.output)):
        names = [t.name for t in tensors]
        for twice in sorted({n for n in names if names.count(n) > 1}):
            yield f"{kind} {twice}: declared twice", "remove one"
    for key in PATHS:
        if key in model_config.parameters and not Path(model_config.parameters[key].string_value).is_dir():
            yield f"parameter {key}: {model_config.parameters[key].string_value!r} is not a directory", None


def _has_code(path: Path) -> bool:
    """Tell whether a path is a file, or a link to a path inside the runtime's image, which is not checked."""
    image = load_table("triton_contract")["image"]["models"]
    return path.is_file() or (path.is_symlink() and os.readlink(path).startswith(f"{image}/"))


def _check_interface(model_config: Any, known: ModelContract) -> Iterator[Mistake]:
    """Check parameter keys and tensors; Triton ignores unknown parameter keys silently."""
    for key in sorted(model_config.parameters):
        if key not in known.parameters:
            yield f"parameter {key}: unknown", suggest_fix(key, known.parameters)
    for key in sorted(known.required - set(model_config.parameters)):
        yield f"parameter {key}: missing", "write it, empty if nothing else"
    for kind, tensors, expected in (
        ("input", model_config.input, known.inputs),
        ("output", model_config.output, known.outputs),
    ):
        types = {t.name: (f"TYPE_{t.type}", t.dims) for t in expected}
        for tensor in tensors:
            if tensor.name not in types:
                yield f"{kind} {tensor.name}: unknown", suggest_fix(tensor.name, types)
                continue
            type_name = config.type_name(tensor.data_type)
            if (type_name, tuple(tensor.dims)) != types[tensor.name]:
                yield (
                    f"{kind} {tensor.name}: {type_name} {list(tensor.dims)}, "
                    f"expected {types[tensor.name][0]} {list(types[tensor.name][1])}",
                    None,
                )


def _check_ensemble(ensemble_config: Any, configs: Mapping[str, Any]) -> Iterator[Mistake]:
    # Ensemble tensor → its type, by the ensemble's inputs and every step's outputs.
    types: dict[str, tuple[int, str]] = {
        t.name: (t.data_type, "the ensemble's input") for t in ensemble_config.input
    }
    used: set[str] = set()
    for step in ensemble_config.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None:
            yield f"step {step.model_name}: no such model", suggest_fix(step.model_name, configs)
            continue
        if ensemble_config.max_batch_size > model.max_batch_size:
            yield (
                f"max_batch_size: {ensemble_config.max_batch_size} is above {step.model_name}'s "
                f"{model.max_batch_size}",
                "make them equal",
            )
        if not ensemble_config.max_batch_size and model.max_batch_size:
            yield (
                f"max_batch_size: 0 over {step.model_name}'s {model.max_batch_size} changes all shapes",
                "make them equal",
            )
        outputs = {t.name: t for t in model.output}
        for key, tensor in sorted(step.output_map.items()):
            if key not in outputs:
                yield f"step {step.model_name}: no output {key}", suggest_fix(key, outputs)
            elif tensor in types:
                yield f"tensor {tensor}: produced twice", "rename one"
            else:
                types[tensor] = (outputs[key].data_type, f"{step.model_name}'s output {key}")
    for step in ensemble_config.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is not None:
            used.update(step.input_map.values())
            yield from _check_step_inputs(step, model, types)
    for tensor in ensemble_config.input:
        if tensor.name not in used:
            yield f"input {tensor.name}: no step uses it", "map it in a step, or remove it"
    for tensor in ensemble_config.output:
        if tensor.name not in types:
            yield f"output {tensor.name}: no step produces it", suggest_fix(tensor.name, types)
        elif types[tensor.name][0] != tensor.data_type:
            yield _describe_other_type(f"output {tensor.name}", tensor.data_type, types[tensor.name])


def _check_step_inputs(step: Any, model: Any, types: Mapping[str, tuple[int, str]]) -> Iterator[Mistake]:
    inputs = {t.name: t for t in model.input}
    for key, tensor in sorted(step.input_map.items()):
        if key not in inputs:
            yield f"step {step.model_name}: no input {key}", suggest_fix(key, inputs)
        elif tensor not in types:
            yield f"tensor {tensor}: no input and no step produces it", suggest_fix(tensor, types)
        elif types[tensor][0] != inputs[key].data_type:
            subject = f"step {step.model_name}: input {key}"
            yield _describe_other_type(subject, inputs[key].data_type, types[tensor])
    for key, tensor in sorted(inputs.items()):
        if key not in step.input_map and not tensor.optional:
            yield f"step {step.model_name}: required input {key} is not mapped", "map it"


def _describe_other_type(subject: str, expected: int, actual: tuple[int, str]) -> Mistake:
    what = f"{subject} is {config.type_name(expected)}, but {actual[1]} is {config.type_name(actual[0])}"
    return what, "give both the same data_type"
