"""Engines of kind ``reference``: checkpoint and tokenizer, proven to compute the model's function.

<engine>/
  enginix.json     manifest: inputs, verdicts of the gates, golden tokens
  gates.json       evidence of the gates
  report.html      the evidence for people
  checkpoint/      copy of the checkpoint, or a link to it
  tokenizer/       tokenizer, chat template, generation defaults
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from enginix import __version__, manifest
from enginix.checkpoint.inputs import identify_checkpoint_inputs
from enginix.digests import SourceWatch
from enginix.errors import CheckpointError, ModelError, UsageError
from enginix.evaluation.judgement import run as gates
from enginix.evaluation.judgement import suite
from enginix.evaluation.judgement.judge import CheckpointGateInputs, judge_checkpoint
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers.prompts import PromptSet, tokenize_prompts
from enginix.integrity import list_content
from enginix.manifest import Manifest
from enginix.model.attention_window import read_context, read_windows
from enginix.model.end_tokens import END_TOKENS_KEY, read_end_tokens
from enginix.model.jsonfile import refuse_other_artefact
from enginix.model.tokenizer_files import copy_tokenizer_files, require_fast_tokenizer
from enginix.output_path import require_absent
from enginix.reference import config as checkpoint_config
from enginix.reference import layout, linear
from enginix.reference.executor import Executor
from enginix.reference.executor_config import ExecutorConfig
from enginix.report import evidence as report
from enginix.tables import load_table
from enginix.work_directory import new_directory

GOLDEN_TOKENS = 32
REQUIRED_VERSIONS = {"torch": ">=2.6"}


@dataclass(frozen=True)
class ReferenceBuildOptions:
    """Options of a reference engine's build.

    Attributes:
        name: name of the engine; ``None`` takes the model's.
        gated: run the gates; without them the manifest says "not gated".
        link_checkpoint: link to the checkpoint instead of copying it.
        tolerance: bound of the gate ``logits`` in place of the table's.
        device: device for gates and golden tokens.
        gates: gate → bounds to change; ``None`` for the defaults of the number format, empty for no gates.
        reference: the model, or its answers, that gates compare with; ``None`` takes the model itself, which
            only works if it is not quantized.
        questions: JSON lines in place of the pinned ones.
        original: the model before quantization, where ``reference`` has answers only.
    """

    name: str | None = None
    gated: bool = True
    link_checkpoint: bool = False
    tolerance: float | None = None
    device: str = "cpu"
    gates: Mapping[str, Any] | None = None
    reference: Path | None = None
    questions: Path | None = None
    original: Path | None = None


def _select_gates(options: ReferenceBuildOptions, config: ExecutorConfig) -> Mapping[str, Any]:
    if not options.gated:
        return {}
    gate_bounds = options.gates
    if gate_bounds is None:
        gate_bounds = {gate: {} for gate in suite.default_checkpoint_gates(config)}
    if options.tolerance is not None and suite.LOGITS in gate_bounds:
        gate_bounds = {**gate_bounds, suite.LOGITS: {"tolerance": options.tolerance}}
    suite.resolve_checkpoint_bounds(config, gate_bounds)
    if gate_bounds and config.quantization.algorithms and options.reference is None:
        raise UsageError(
            "gates of a quantized checkpoint need the model before quantization",
            fix="--reference ORIGINAL_MODEL (or its answers: enginix reference), or --no-gates",
        )
    return gate_bounds


def build_reference_engine(
    checkpoint: Path, model: Path, out: Path, options: ReferenceBuildOptions | None = None
) -> tuple[Manifest, tuple[GateOutcome, ...]]:
    """Build an engine directory; it is complete or absent.

    Args:
        checkpoint: TensorRT-LLM checkpoint directory.
        model: the Hugging Face model that it was converted from: reference of the gates, and tokenizer.
        out: directory to create.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or not executable here; has expected and
            actual shape.
        ModelError: model or tokenizer are missing.
        ManifestError: the checkpoint was made from another model.
        GateError: a gate failed or could not be run.
    """
    require_absent(out)
    options = options or ReferenceBuildOptions()
    watch = SourceWatch(checkpoint, model, options.reference)
    for directory in (model, options.reference, options.original):
        if directory is not None:
            refuse_other_artefact(directory)
    config = checkpoint_config.read_executor_config(checkpoint)
    linear.refuse_unknown_format(config, str(checkpoint / "config.json"))
    layout.check_rank_files(checkpoint, config)
    if not (model / "config.json").is_file():
        raise ModelError("no config.json", where=str(model), fix="pass the Hugging Face model's directory")
    require_fast_tokenizer(model)
    if read_context(model, config.context) < config.context:
        raise CheckpointError(
            "its manifest lacks the model's sliding window; kind reference attends beyond that window",
            where=str(checkpoint),
            fix="convert the model with enginix convert",
        )
    inputs, ends = identify_checkpoint_inputs(checkpoint, model), read_end_tokens(model)
    tokenizer = hf.TransformersTokenizer(model)
    prompts = tokenize_prompts(tokenizer.encode, config.vocab_size, config.context)
    gate_bounds = _select_gates(options, config)
    outcomes: tuple[GateOutcome, ...] = ()
    load = functools.cache(lambda: Executor.load(checkpoint, options.device, "float32"))
    with new_directory(out) as partial:
        gate_evidence = gates.build_gate_evidence(prompts, ())
        if gate_bounds:
            models = (model, model, options.reference or model)
            case = CheckpointGateInputs(
                checkpoint, *models, gate_bounds, options.questions, options.device, options.original
            )
            outcomes, gate_evidence = judge_checkpoint(case, load)
            gates.require_gates_passed(outcomes)
        executor = load()
        # After the gates, which tell more about a changed checkpoint.
        content = list_content(checkpoint, "checkpoint/")
        _put_checkpoint(checkpoint, partial / "checkpoint", link=options.link_checkpoint)
        copy_tokenizer_files(model, partial / "tokenizer")
        name = options.name or manifest.read_artefact_name(model)
        report.write_evidence_files(partial, name, gate_evidence)
        engine_manifest = Manifest(
            artefact="engine",
            name=name,
            kind="reference",
            model={**config.describe(), **read_windows(model), END_TOKENS_KEY: list(ends)},
            inputs=inputs,
            options={
                "gates": {o.gate: _collect_bounds(o) for o in outcomes},
                "limits": {"max_seq_len": executor.max_length},
            },
            runtime={"id": "reference", "requires": REQUIRED_VERSIONS},
            tools={"enginix": __version__, "torch": torch.__version__.split("+")[0]},
            results={
                "gates": {o.gate: "passed" for o in outcomes} or "not gated",
                "golden": _record_golden_tokens(executor, tokenizer, prompts, ends),
            },
        )
        watch.require_unchanged()
        engine_manifest = engine_manifest.write(partial, known=content if options.link_checkpoint else None)
    return engine_manifest, outcomes


def _collect_bounds(outcome: GateOutcome) -> dict[str, Any]:
    keys = ("tolerance", *load_table("gates")["formats"]["NO_QUANT"]["bounds"].get(outcome.gate, {}))
    return {key: outcome.detail[key] for key in keys if key in outcome.detail}


def _put_checkpoint(checkpoint: Path, to: Path, *, link: bool) -> None:
    if link:
        to.symlink_to(os.path.abspath(checkpoint), target_is_directory=True)
        return
    to.mkdir()
    for path in sorted(checkpoint.iterdir()):
        if path.name in ("config.json", manifest.MANIFEST_FILE) or path.suffix == ".safetensors":
            shutil.copyfile(path, to / path.name)


def _record_golden_tokens(
    executor: Executor, tokenizer: hf.TransformersTokenizer, prompts: PromptSet, ends: tuple[int, ...]
) -> dict[str, Any]:
    """Return a prompt and its greedy continuation, so that servers can compare an engine's answer with it."""
    prompt = prompts.golden
    free_tokens = executor.max_length - len(prompt.tokens)
    if free_tokens < 1:
        raise CheckpointError(
            f"a context of {executor.max_length} tokens is too short for the golden prompt's answer"
        )
    tokens = executor.greedy(prompt.tokens, min(GOLDEN_TOKENS, free_tokens), ends)
    return {
        "prompt": prompt.text,
        "promptTokens": list(prompt.tokens),
        "tokens": tokens,
        "text": tokenizer.decode(tokens),
        "endIds": list(ends),
        "dtype": "float32",
    }
