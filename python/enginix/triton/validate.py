"""Checks a whole model repository before Triton sees it.

Every check is of a mistake that a real server either refuses with a message that does not name the key, or
accepts in silence (docs/triton.md lists both).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as schema

from enginix.errors import RepositoryError
from enginix.tables import table
from enginix.triton import config, llmapi
from enginix.triton.contract import Model

# The ensemble where it is a Python model, of the reference kind; Triton's own ensembles have no instances.
TOKENIZER_MODELS = ("preprocessing", "postprocessing", "ensemble")
PATHS = ("tokenizer_dir", "gpt_model_path", "enginix_path")


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is, what it is, what to do."""

    where: str
    what: str
    fix: str | None = None


def validate(
    repository: Path, *, known: Mapping[str, Model] | None = None, max_batch_size: int | None = None
) -> dict[str, Any]:
    """Checks every model of ``repository`` and returns the parsed configurations by name.

    Args:
        known: models whose tensors and parameter keys are known; others get the general checks only.
        max_batch_size: the engine's limit; no model that runs it may exceed it.

    Raises:
        RepositoryError: the first mistake, with the others counted in the message.
    """
    if not repository.is_dir():
        raise RepositoryError("no such directory", where=str(repository))
    configs: dict[str, Any] = {}
    problems: list[Problem] = []
    for directory in sorted(p for p in repository.iterdir() if p.is_dir()):
        if not (directory / config.FILE).is_file():
            problems.append(
                Problem(
                    directory.name,
                    f"directory without {config.FILE}: Triton takes every directory here for a model",
                    "move it out of the repository; plain files may stay",
                )
            )
            continue
        try:
            configs[directory.name] = config.read(directory / config.FILE)
        except RepositoryError as e:
            problems.append(Problem(f"{directory.name}/{config.FILE}", e.what, e.fix))
    if not configs and not problems:
        problems.append(Problem(str(repository), "no model in it", "build it with enginix triton-repo"))
    for name, found in configs.items():
        problems += _model(repository / name, found)
        if known and name in known:
            problems += _interface(found, known[name])
        if max_batch_size is not None and found.max_batch_size > max_batch_size:
            problems.append(
                Problem(
                    name,
                    f"max_batch_size: {found.max_batch_size} is above the engine's {max_batch_size}",
                    f"--max-batch-size {max_batch_size} or less, or build the engine with more",
                )
            )
    for name, found in configs.items():
        if found.HasField("ensemble_scheduling"):
            problems += _ensemble(name, found, configs)
        if (repository / name / "1" / llmapi.MODEL_YAML).is_file():
            try:
                llmapi.check(repository / name, found)
            except RepositoryError as e:
                problems.append(Problem(f"{name}/1/{llmapi.MODEL_YAML}", e.what, e.fix))
    if problems:
        first, others = problems[0], problems[1:]
        also = "".join(f"\n  also: {p.where}: {p.what}" for p in others)
        raise RepositoryError(first.what, where=first.where, fix=(first.fix or "correct it") + also)
    return configs


def _model(directory: Path, found: Any) -> Iterator[Problem]:
    name = directory.name
    if found.name != name:
        yield Problem(name, f"name: {found.name!r} is not the directory's name", f'write name: "{name}"')
    versions = [p for p in directory.iterdir() if p.is_dir() and p.name.isdigit() and int(p.name) > 0]
    if not versions:
        yield Problem(name, "no numeric version directory", f"create {name}/1, empty for an ensemble")
    is_ensemble = found.HasField("ensemble_scheduling")
    if found.backend == "python":
        for version in versions:
            if not _has_code(version / "model.py"):
                yield Problem(f"{name}/{version.name}", "no model.py, which the Python backend loads")
    if is_ensemble and found.instance_group:
        yield Problem(name, "instance_group: an ensemble has no instances", "remove it")
    if is_ensemble and (found.backend or found.platform != "ensemble"):
        yield Problem(
            name,
            f"backend: {found.backend or found.platform!r} on an ensemble",
            'write platform: "ensemble" only',
        )
    if not is_ensemble and not (found.backend or found.platform):
        yield Problem(name, "backend: missing", 'write backend: "python", or the one that runs the model')
    for size in found.dynamic_batching.preferred_batch_size:
        if size > found.max_batch_size:
            yield Problem(
                name,
                f"preferred_batch_size: {size} is above max_batch_size {found.max_batch_size}",
                "lower it",
            )
    gpus = (schema.ModelInstanceGroup.KIND_GPU, schema.ModelInstanceGroup.KIND_AUTO)
    if name in TOKENIZER_MODELS and not is_ensemble and any(g.kind in gpus for g in found.instance_group):
        yield Problem(name, "instance_group kind: a tokenizer needs no GPU", "write kind: KIND_CPU")
    for kind, tensors in (("input", found.input), ("output", found.output)):
        names = [t.name for t in tensors]
        for twice in sorted({n for n in names if names.count(n) > 1}):
            yield Problem(name, f"{kind} {twice}: declared twice", "remove one")
    for key in PATHS:
        if key in found.parameters and not Path(found.parameters[key].string_value).is_dir():
            yield Problem(name, f"parameter {key}: {found.parameters[key].string_value!r} is not a directory")


def _has_code(path: Path) -> bool:
    """A file, or a link to where the runtime's image has one, which is not here to be seen."""
    image = table("triton_contract")["image"]["models"]
    return path.is_file() or (path.is_symlink() and os.readlink(path).startswith(f"{image}/"))


def _interface(found: Any, known: Model) -> Iterator[Problem]:
    """Triton ignores parameter keys that nobody reads, so a typo would change nothing and say nothing."""
    for key in sorted(found.parameters):
        if key not in known.parameters:
            yield Problem(known.name, f"parameter {key}: unknown", nearest(key, known.parameters))
    for key in sorted(known.required - set(found.parameters)):
        yield Problem(known.name, f"parameter {key}: missing", "write it, empty if nothing else")
    for kind, tensors, expected in (
        ("input", found.input, known.inputs),
        ("output", found.output, known.outputs),
    ):
        types = {t.name: (f"TYPE_{t.type}", t.dims) for t in expected}
        for tensor in tensors:
            if tensor.name not in types:
                yield Problem(known.name, f"{kind} {tensor.name}: unknown", nearest(tensor.name, types))
                continue
            type_name = config.type_name(tensor.data_type)
            if (type_name, tuple(tensor.dims)) != types[tensor.name]:
                yield Problem(
                    known.name,
                    f"{kind} {tensor.name}: {type_name} {list(tensor.dims)}, "
                    f"expected {types[tensor.name][0]} {list(types[tensor.name][1])}",
                )


def _ensemble(name: str, found: Any, configs: Mapping[str, Any]) -> Iterator[Problem]:
    # Ensemble tensor → its type, from the ensemble's inputs and every step's outputs.
    types: dict[str, tuple[int, str]] = {t.name: (t.data_type, "the ensemble's input") for t in found.input}
    used: set[str] = set()
    for step in found.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None:
            yield Problem(name, f"step {step.model_name}: no such model", nearest(step.model_name, configs))
            continue
        if found.max_batch_size > model.max_batch_size:
            yield Problem(
                name,
                f"max_batch_size: {found.max_batch_size} is above {step.model_name}'s {model.max_batch_size}",
                "make them equal",
            )
        if not found.max_batch_size and model.max_batch_size:
            yield Problem(
                name,
                f"max_batch_size: 0 over {step.model_name}'s {model.max_batch_size} changes all shapes",
                "make them equal",
            )
        outputs = {t.name: t for t in model.output}
        for key, tensor in sorted(step.output_map.items()):
            if key not in outputs:
                yield Problem(name, f"step {step.model_name}: no output {key}", nearest(key, outputs))
            elif tensor in types:
                yield Problem(name, f"tensor {tensor}: produced twice", "rename one")
            else:
                types[tensor] = (outputs[key].data_type, f"{step.model_name}'s output {key}")
    for step in found.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is not None:
            used.update(step.input_map.values())
            yield from _step_inputs(name, step, model, types)
    for tensor in found.input:
        if tensor.name not in used:
            yield Problem(name, f"input {tensor.name}: no step uses it", "map it in a step, or remove it")
    for tensor in found.output:
        if tensor.name not in types:
            yield Problem(name, f"output {tensor.name}: no step produces it", nearest(tensor.name, types))
        elif types[tensor.name][0] != tensor.data_type:
            yield _mismatch(name, f"output {tensor.name}", tensor.data_type, types[tensor.name])


def _step_inputs(name: str, step: Any, model: Any, types: Mapping[str, tuple[int, str]]) -> Iterator[Problem]:
    inputs = {t.name: t for t in model.input}
    for key, tensor in sorted(step.input_map.items()):
        if key not in inputs:
            yield Problem(name, f"step {step.model_name}: no input {key}", nearest(key, inputs))
        elif tensor not in types:
            yield Problem(name, f"tensor {tensor}: no input and no step produces it", nearest(tensor, types))
        elif types[tensor][0] != inputs[key].data_type:
            yield _mismatch(
                name, f"step {step.model_name}: input {key}", inputs[key].data_type, types[tensor]
            )
    for key, tensor in sorted(inputs.items()):
        if key not in step.input_map and not tensor.optional:
            yield Problem(name, f"step {step.model_name}: required input {key} is not mapped", "map it")


def _mismatch(name: str, what: str, wanted: int, given: tuple[int, str]) -> Problem:
    return Problem(
        name,
        f"{what} is {config.type_name(wanted)}, but {given[1]} is {config.type_name(given[0])}",
        "give both the same data_type",
    )


def nearest(name: str, known: Collection[str]) -> str:
    """What to do about an unknown name."""
    if (now := table("triton_contract")["renamed"]["names"].get(name)) in known:
        return f"it is {now} in this version"
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"did you mean {near[0]}?" if near else f"known are: {', '.join(sorted(known))}"
