"""Judge an engine of kind ``reference``: from directories to verdict and evidence."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from enginix import device as devices
from enginix.errors import CheckpointError, EnginixError, UsageError
from enginix.evaluation.judgement import run, suite
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers import material as materials
from enginix.evaluation.reference_answers.prompts import tokenize_prompts
from enginix.evaluation.reference_answers.reference_asker import compute_reference_answers, read_questions
from enginix.evaluation.reference_answers.subject import ExecutorSubject
from enginix.reference import config as checkpoint_config
from enginix.reference.config import ExecutorConfig
from enginix.reference.executor import Executor

FORMAT = 1


@dataclass(frozen=True)
class CheckpointGateInputs:
    """The inputs of the gates of a checkpoint.

    Attributes:
        checkpoint: TensorRT-LLM checkpoint directory.
        tokenizer: directory of the engine's tokenizer.
        model: the Hugging Face model whose tokenizer reads the texts.
        reference: a Hugging Face model, or a directory of its answers (``enginix reference``).
        requested_gates: gate → bounds to change; ``None`` for the defaults.
        questions: JSON lines with ``question`` and ``answer`` in place of the pinned ones.
        device: the device that computes.
    """

    checkpoint: Path
    tokenizer: Path
    model: Path
    reference: Path
    requested_gates: Mapping[str, Any] | None = None
    questions: Path | None = None
    device: str = "cpu"


def parse_gates(text: str) -> dict[str, Any]:
    """Parse requested gates from JSON: ``{"perplexity": {"ratio": 1.02}, "smoke": {}}``.

    Raises:
        UsageError: not a JSON object.
    """
    try:
        requested = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UsageError(f"--gates is not JSON: {e}", fix="""--gates '{"smoke": {}}'""") from e
    if not isinstance(requested, dict):
        raise UsageError(f"--gates is {requested!r}, not an object", fix="""--gates '{"smoke": {}}'""")
    return requested


def judge_checkpoint(
    case: CheckpointGateInputs, load: Callable[[], Executor] | None = None
) -> tuple[tuple[GateOutcome, ...], dict[str, Any]]:
    """Return the outcome of every requested gate, and the evidence for ``gates.json``.

    Args:
        load: returns the caller's executor, which computes in float32; None loads one.

    Raises:
        GateError: the reference is missing or has no answers; without it no gate passes.
        UsageError: a gate or bound that does not exist.
        CheckpointError: the checkpoint cannot be read.
        MachineError: no such device, which is not a gate's failure.
    """
    config = checkpoint_config.read_executor_config(case.checkpoint)
    gate_bounds = suite.resolve_checkpoint_bounds(
        config,
        {gate: {} for gate in suite.default_checkpoint_gates(config)}
        if case.requested_gates is None
        else case.requested_gates,
    )
    if not gate_bounds:
        return (), {"format": FORMAT, "passed": None, "gates": {}}
    devices.find_device(case.device)
    ready = (case.reference / kept_answers.FILE).is_file()
    load = load or functools.cache(lambda: Executor.load(case.checkpoint, case.device, "float32"))
    outcomes: tuple[GateOutcome, ...] = ()
    evidence: dict[str, Any] = {"format": FORMAT}
    if suite.LOGITS in gate_bounds:
        gate_outcomes, gate_evidence = _judge_logits(
            case, gate_bounds[suite.LOGITS].get("tolerance"), load, config
        )
        outcomes, evidence = gate_outcomes, evidence | gate_evidence
    if set(gate_bounds) - {suite.LOGITS}:
        tokenizer = hf.TransformersTokenizer(case.reference if not ready else case.model)
        if ready:
            answers = kept_answers.read_reference_answers(case.reference)
            material = materials.load_material(
                tokenizer,
                config.vocab_size,
                config.context,
                questions=read_questions(case.questions),
            )
        else:
            answers, material = compute_reference_answers(case.reference, case.device, case.questions)

        def engine() -> suite.JudgedEngine:
            executor = load()
            return suite.JudgedEngine(
                ExecutorSubject(executor), hf.TransformersTokenizer(case.tokenizer), executor.config
            )

        gate_outcomes, extra_evidence = suite.run_gates(engine, tokenizer, material, answers, gate_bounds)
        outcomes += gate_outcomes
        evidence |= {
            "material": material.describe(),
            "reference": answers.model,
            "bounds": suite.explain_bounds(config),
            **extra_evidence,
        }
    evidence["passed"] = all(o.passed for o in outcomes)
    evidence["gates"] = {o.gate: {"passed": o.passed, **_summary_entry(o), **o.detail} for o in outcomes}
    return outcomes, evidence


def _summary_entry(outcome: GateOutcome) -> dict[str, str]:
    # The last digits of that gate's figures depend on the CPU, so its evidence states bounds instead.
    return {} if outcome.gate == suite.LOGITS and outcome.passed else {"summary": outcome.summary}


def _judge_logits(
    case: CheckpointGateInputs, tolerance: float | None, load: Callable[[], Executor], config: ExecutorConfig
) -> tuple[tuple[GateOutcome, ...], dict[str, Any]]:
    try:
        tokenizer = hf.TransformersTokenizer(case.tokenizer)
        prompts = tokenize_prompts(tokenizer.encode, config.vocab_size, config.context)
        stored_reference = _read_stored_logits(case, tokenizer, config)
        outcomes = run.run_logits_gate(
            case.reference,
            load,
            prompts,
            tolerance=tolerance,
            device=case.device,
            stored_reference=stored_reference,
        )
        return outcomes, {"promptSet": {"sha256": prompts.sha256, "count": len(prompts.prompts)}}
    except CheckpointError:
        raise
    except EnginixError as e:
        return (GateOutcome(suite.LOGITS, False, f"could not be run: {e.what}", {"error": e.what}),), {}


def _read_stored_logits(
    case: CheckpointGateInputs, tokenizer: hf.TransformersTokenizer, config: ExecutorConfig
) -> tuple[list[torch.Tensor], str] | None:
    if not (case.reference / kept_answers.FILE).is_file():
        return None
    answers = kept_answers.read_reference_answers(case.reference)
    material = materials.load_material(
        tokenizer,
        config.vocab_size,
        config.context,
        questions=read_questions(case.questions),
    )
    kept_answers.require_same_material(answers, material)
    return kept_answers.read_logits(case.reference, len(material.prompts)), str(answers.dtype)


def gate_verdicts(outcomes: Sequence[GateOutcome]) -> dict[str, str]:
    """Return gate → ``passed`` or ``failed``."""
    return {o.gate: "passed" if o.passed else "failed" for o in outcomes}
