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
from enginix.evaluation.reference_answers.exact_answers import (
    count_answered,
    read_questions,
    require_answered,
)
from enginix.evaluation.reference_answers.prompts import PromptSet, tokenize_prompts
from enginix.evaluation.reference_answers.reference_asker import ask_model
from enginix.evaluation.reference_answers.subject import ExecutorSubject, TransformersSubject
from enginix.model.config import read_model_config
from enginix.model.end_tokens import read_end_tokens
from enginix.progress import track_step
from enginix.reference import config as checkpoint_config
from enginix.reference.executor import Executor
from enginix.reference.executor_config import ExecutorConfig

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
        original: the Hugging Face model before quantization, if ``reference`` has answers only.
        end_tokens: tokens that end an answer by the engine's manifest; None where it names none.
    """

    checkpoint: Path
    tokenizer: Path
    model: Path
    reference: Path
    requested_gates: Mapping[str, Any] | None = None
    questions: Path | None = None
    device: str = "cpu"
    original: Path | None = None
    end_tokens: tuple[int, ...] | None = None


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
        QuestionsError: the user's own questions are unreadable, or the reference answers none of them.
        UsageError: a gate or bound that does not exist.
        CheckpointError: the checkpoint cannot be read.
        MachineError: no such device, which is not a gate's failure.
    """
    config = checkpoint_config.read_executor_config(case.checkpoint)
    defaults = suite.default_checkpoint_gates(config)
    gate_bounds = suite.resolve_checkpoint_bounds(
        config,
        {gate: {} for gate in defaults} if case.requested_gates is None else case.requested_gates,
    )
    if not gate_bounds:
        return (), {"format": FORMAT, "passed": None, "gates": {}}
    devices.find_device(case.device)
    is_answers = kept_answers.is_answers(case.reference)
    if is_answers:
        kept_answers.require_whole_answers(case.reference, case.checkpoint)
    load = load or functools.cache(lambda: Executor.load(case.checkpoint, case.device, "float32"))
    # The model's own: by the engine's, both sides would read the same wrong tokens.
    tokenizer = hf.TransformersTokenizer(case.model if is_answers else case.reference)
    compared = suite.ComparedFiles(
        case.tokenizer,
        case.reference / kept_answers.MODEL_FILES if is_answers else case.reference,
        case.end_tokens,
        case.checkpoint,
        find_compared_models(case, is_answers=is_answers),
    )
    evidence: dict[str, Any] = {"format": FORMAT}
    asking = set(gate_bounds) - {suite.LOGITS, *suite.COMPARED}

    @functools.cache
    def engine() -> suite.JudgedEngine:
        executor = load()
        return suite.JudgedEngine(
            ExecutorSubject(executor),
            hf.TransformersTokenizer(case.tokenizer),
            executor.config,
            frozenset(read_end_tokens(case.tokenizer) or case.end_tokens or ()) or None,
            executor.without_rounding,
        )

    def draft(prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int]) -> Sequence[Sequence[int]]:
        # Quantized engines continue most prompts in another way; answers that no gate judges cost time.
        if not suite.is_unquantized(config) or suite.SMOKE not in gate_bounds:
            return ()
        try:
            return engine().runs.generate(prompts, most, ends)
        except Exception:  # the gate tells what it is
            return ()

    # First: questions that cannot judge are refused before any gate is run.
    reference = _read_reference(case, config, tokenizer, draft, is_answers=is_answers) if asking else None
    outcomes = suite.compare_model(compared, gate_bounds)
    if suite.LOGITS in gate_bounds:
        gate_outcomes, gate_evidence = _judge_logits(
            case, gate_bounds[suite.LOGITS].get("tolerance"), load, config, tokenizer, reference
        )
        outcomes, evidence = outcomes + gate_outcomes, evidence | gate_evidence
    if reference is not None:
        answers, material = reference.answers, reference.material
        left_out = {suite.CONTEXT: explain_missing_context(answers, material, tokenizer)}
        if suite.LOGITS in defaults:  # of a quantized engine a model without answers proves too little
            left_out[suite.TASK] = explain_missing_task(answers, material, tokenizer)
        left_out = {gate: reason for gate, reason in left_out.items() if reason is not None}
        if set(gate_bounds) == set(defaults) and left_out:
            gate_bounds = {gate: row for gate, row in gate_bounds.items() if gate not in left_out}
            evidence["leftOut"] = left_out

        gate_outcomes, extra_evidence = suite.run_gates(engine, tokenizer, material, answers, gate_bounds)
        outcomes += gate_outcomes
        evidence |= {
            "material": material.describe(),
            "reference": answers.model,
            "bounds": suite.explain_bounds(config),
            **extra_evidence,
        }
    outcomes = tuple(sorted(outcomes, key=lambda outcome: suite.GATES.index(outcome.gate)))
    evidence["passed"] = all(o.passed for o in outcomes)
    evidence["gates"] = {o.gate: {"passed": o.passed, **_summary_entry(o), **o.detail} for o in outcomes}
    return outcomes, evidence


@dataclass(frozen=True)
class GateReference:
    """The reference's answers to the gates' questions.

    Attributes:
        subject: the model, where it was asked now; its whole logits are not among the answers.
    """

    answers: kept_answers.ReferenceAnswers
    material: materials.Material
    subject: TransformersSubject | None = None


def _read_reference(
    case: CheckpointGateInputs,
    config: ExecutorConfig,
    tokenizer: hf.TransformersTokenizer,
    draft: kept_answers.Generate | None = None,
    *,
    is_answers: bool,
) -> GateReference:
    if not is_answers:
        return GateReference(*ask_model(case.reference, case.device, case.questions, draft))
    material = materials.load_material(
        tokenizer, config.vocab_size, config.context, questions=read_questions(case.questions)
    )
    answers = kept_answers.read_reference_answers(case.reference)
    kept_answers.require_same_material(answers, material)
    require_answered(case.questions, material.questions, answers.replies, answers.ends, tokenizer)
    return GateReference(answers, material)


def find_compared_models(case: CheckpointGateInputs, *, is_answers: bool) -> dict[str, Path]:
    """Return the models that the gate ``weights`` compares a checkpoint with, by what they are to it.

    A quantized model is one that the checkpoint was converted from; the one before quantization is asked for
    as well, where it is known.
    """
    candidates = [case.original, case.model] if is_answers else [case.original, case.reference, case.model]
    models: dict[str, Path] = {}
    for directory in candidates:
        if directory is None or not any(directory.glob("*.safetensors")):
            continue
        what = "the model" if read_model_config(directory).quantization is None else "the quantized model"
        models.setdefault(what, directory)
    return models


def explain_missing_context(
    answers: kept_answers.ReferenceAnswers, material: materials.Material, tokenizer: hf.TransformersTokenizer
) -> str | None:
    """Return why the gate ``context`` cannot judge an engine of this model; None if it can."""
    if not material.recalls:
        return "no text with a planted fact fits the model"
    found = count_answered(material.recalls, answers.recalls, answers.ends, tokenizer)
    return None if found else "the reference finds none of the planted facts"


def explain_missing_task(
    answers: kept_answers.ReferenceAnswers, material: materials.Material, tokenizer: hf.TransformersTokenizer
) -> str | None:
    """Return why the gate ``task`` cannot judge an engine of this model; None if it can."""
    found = count_answered(material.questions, answers.replies, answers.ends, tokenizer)
    return None if found else "the reference answers none of the questions"


def _summary_entry(outcome: GateOutcome) -> dict[str, str]:
    # The last digits of that gate's figures depend on the CPU, so its evidence states bounds instead.
    return {} if outcome.gate == suite.LOGITS and outcome.passed else {"summary": outcome.summary}


def _judge_logits(
    case: CheckpointGateInputs,
    tolerance: float | None,
    load: Callable[[], Executor],
    config: ExecutorConfig,
    tokenizer: hf.TransformersTokenizer,
    reference: GateReference | None,
) -> tuple[tuple[GateOutcome, ...], dict[str, Any]]:
    try:
        prompts = tokenize_prompts(tokenizer.encode, config.vocab_size, config.context)
        with track_step(f"gate {suite.LOGITS}"):
            is_answers = kept_answers.is_answers(case.reference)
            outcomes = run.run_logits_gate(
                case.model if is_answers else case.reference,
                load,
                prompts,
                tolerance=tolerance,
                device=case.device,
                stored_reference=_find_logits(case, tokenizer, config, prompts, reference),
            )
        return outcomes, {"promptSet": {"sha256": prompts.sha256, "count": len(prompts.prompts)}}
    except CheckpointError:
        raise
    except EnginixError as e:
        return (GateOutcome.not_run(suite.LOGITS, e),), {}


def _find_logits(
    case: CheckpointGateInputs,
    tokenizer: hf.TransformersTokenizer,
    config: ExecutorConfig,
    prompts: PromptSet,
    reference: GateReference | None,
) -> tuple[list[torch.Tensor], str] | None:
    """Return the reference's logits of the prompts and its dtype; None where the model must be asked."""
    if reference is not None and reference.subject is not None:
        logits = reference.subject.logits([p.tokens for p in prompts.prompts])
        return [one.cpu() for one in logits], hf.read_stored_dtype(case.reference)
    if not kept_answers.is_answers(case.reference):
        return None
    known = reference or _read_reference(case, config, tokenizer, is_answers=True)
    return kept_answers.read_logits(case.reference, len(prompts.prompts)), str(known.answers.dtype)


def gate_verdicts(outcomes: Sequence[GateOutcome]) -> dict[str, str]:
    """Return gate → ``passed`` or ``failed``."""
    return {o.gate: "passed" if o.passed else "failed" for o in outcomes}
