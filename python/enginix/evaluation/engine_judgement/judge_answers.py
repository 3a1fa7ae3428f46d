"""Judge an engine in its own runtime from its recorded answers and the reference's, without running it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.errors import GateError, UsageError
from enginix.evaluation.engine_judgement import answer_metrics, answer_record
from enginix.evaluation.engine_judgement.answer_record import RecordedSubject
from enginix.evaluation.engine_protocol import answers_origin
from enginix.evaluation.judgement import quality
from enginix.evaluation.judgement.gate_names import list_gates, resolve_bounds
from enginix.evaluation.judgement.judge import FORMAT
from enginix.evaluation.judgement.model_files import judge_files
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers.material import Material, require_same_tokens
from enginix.evaluation.reference_answers.question_builder import convert_material, load_model_material
from enginix.manifest import Manifest
from enginix.model.end_tokens import read_manifest_end_tokens
from enginix.tables import load_table

GATES = list_gates("engine")
OF_CHECKPOINTS = tuple(gate for gate in list_gates("checkpoint") if gate not in GATES)
GOLDEN = 32  # tokens that the manifest holds


@dataclass(frozen=True)
class AnswerGateInputs:
    """The inputs of the gates of an engine.

    Attributes:
        engine: the engine, of which manifest and tokenizer are read.
        said: directory of its answers (said.json, said.safetensors).
        model: the Hugging Face model whose tokenizer reads the texts.
        reference: the reference's answers (``enginix reference``).
        requested_gates: gate → bounds to change; ``None`` for the kind's defaults.
        questions: JSON lines in place of the pinned questions; the same as the engine was asked.
        material: the questions and the model's tokenizer, where the caller has loaded them.
    """

    engine: Path
    said: Path
    model: Path
    reference: Path
    requested_gates: Mapping[str, Any] | None = None
    questions: Path | None = None
    material: tuple[Material, hf.TransformersTokenizer] | None = None


def find_kind_row(kind: str | None) -> Mapping[str, Any]:
    """Return the table's row of a kind.

    Raises:
        UsageError: a kind that is not judged by recorded answers.
    """
    kinds: Mapping[str, Any] = load_table("gates")["kinds"]
    if kind is None or not isinstance(kinds.get(kind), dict):
        raise UsageError(f"an engine of kind {kind} cannot be judged by recorded answers")
    return dict(kinds[kind])


def default_engine_gates(engine_manifest: Manifest) -> tuple[str, ...]:
    row = find_kind_row(engine_manifest.kind)
    scores = engine_manifest.options.get("plugins", {}).get("gatherContextLogits") is True
    return (*row["default"], *(row["withContextLogits"] if scores else ()))


def engine_format_row(engine_manifest: Manifest) -> str:
    """Return the row of default bounds: the coarsest number format of an engine's weights and cache."""
    rows = list(load_table("gates")["formats"])
    weights = engine_manifest.model.get("quantization") or "NO_QUANT"
    # Mixed precision has no row of its own and gets that of its coarsest part.
    row = weights if weights in rows else rows[-1]
    cache = "FP8" if engine_manifest.model.get("kvCacheQuantization") else "NO_QUANT"
    return max((row, cache), key=rows.index)


def resolve_engine_bounds(
    engine_manifest: Manifest, requested_gates: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return each requested gate's bounds: the table's for the number format, with the requested changes.

    Raises:
        UsageError: no such gate or bound, or a bound that is not a positive number.
    """
    rows: Mapping[str, Any] = load_table("gates")["formats"][engine_format_row(engine_manifest)]["bounds"]
    if unfit := [gate for gate in requested_gates if gate in OF_CHECKPOINTS]:
        raise UsageError(
            f"gate {unfit[0]} needs a checkpoint, which a compiled engine does not have",
            fix="gate its checkpoint: enginix gate CHECKPOINT, or an engine of kind reference",
        )
    own = {
        "greedy": {"top1": rows["agreement"]["top1"]},
        "invariance": {**rows.get("invariance", {}), "tie": find_kind_row(engine_manifest.kind)["tie"]},
    }
    return resolve_bounds(requested_gates, GATES, lambda gate: own.get(gate, rows.get(gate, {})))


def resolve_requested_bounds(
    engine_manifest: Manifest, requested_gates: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Return the bounds of the requested gates; ``None`` requests the kind's defaults."""
    return resolve_engine_bounds(
        engine_manifest,
        {gate: {} for gate in default_engine_gates(engine_manifest)}
        if requested_gates is None
        else requested_gates,
    )


def judge_engine_answers(case: AnswerGateInputs) -> tuple[tuple[GateOutcome, ...], dict[str, Any]]:
    """Return the outcome of every requested gate, and the evidence for ``gates.json``.

    An engine's answers never raise: a gate that cannot be decided has failed.

    Raises:
        GateError: the reference's answers are missing, or to other questions.
        UsageError: a gate or bound that does not exist.
        ManifestError: not an engine.
    """
    engine_manifest = manifest.read_manifest(case.engine, "engine")
    gate_bounds = resolve_requested_bounds(engine_manifest, case.requested_gates)
    unverified = manifest.explain_unverified(engine_manifest)
    warning = {} if unverified is None else {"warning": unverified}
    if not gate_bounds:
        return (), {"format": FORMAT, "passed": None, "gates": {}, **warning}
    material, tokenizer = case.material or load_model_material(case.model, case.questions)
    question_set = convert_material(case.model, material, tokenizer)
    answers = kept_answers.read_reference_answers(case.reference)
    kept_answers.require_same_material(answers, material)
    evidence: dict[str, Any] = {
        "format": FORMAT,
        **warning,
        "kind": engine_manifest.kind,
        "material": material.describe(),
        "reference": answers.model,
        "bounds": {
            "format": engine_format_row(engine_manifest),
            "reason": load_table("gates")["formats"][engine_format_row(engine_manifest)]["reason"],
        },
    }
    names = [name for name in GATES if name in gate_bounds]
    outcomes: list[GateOutcome] = []
    try:
        answers_origin.require_answers_origin(case.engine, case.said)
        engine_answers = answer_record.read_engine_answers(case.said)
        if engine_answers.kind != engine_manifest.kind:
            raise GateError(
                f"the answers are of an engine of kind {engine_answers.kind}, not {engine_manifest.kind}"
            )
        answer_record.require_same_questions(engine_answers, question_set)
        own_tokenizer = hf.TransformersTokenizer(
            _tokenizer_directory(case.engine, case.model, engine_manifest)
        )
        require_same_tokens(own_tokenizer, tokenizer, material)
    except Exception as e:
        outcomes = [GateOutcome.not_run(name, e) for name in names]
    else:
        evidence |= {"runtime": engine_answers.by, "absent": engine_answers.absent}
        tie = gate_bounds.get("invariance", {}).get("tie", find_kind_row(engine_manifest.kind)["tie"])
        recorded: Any = RecordedSubject(engine_answers, question_set, tie)
        scored = functools.partial(answer_metrics.select_scored_passages, engine_answers, answers)
        gates: dict[str, Callable[[dict[str, Any]], GateOutcome]] = {
            "files": lambda b: judge_files(
                _tokenizer_directory(case.engine, case.model, engine_manifest),
                case.reference / kept_answers.MODEL_FILES,
                read_manifest_end_tokens(engine_manifest),
                b,
            ),
            "smoke": lambda b: quality.judge_smoke(recorded, material, answers, own_tokenizer, b),
            "greedy": lambda b: answer_metrics.judge_greedy(engine_answers, question_set, answers, b),
            "agreement": lambda b: quality.judge_agreement(*scored(), b),
            "perplexity": lambda b: quality.judge_perplexity(*scored()[::2], b),
            "task": lambda b: quality.judge_task(recorded, material, answers, own_tokenizer, b),
            "context": lambda b: quality.judge_context(recorded, material, answers, own_tokenizer, b),
            "invariance": lambda b: answer_metrics.judge_recorded_invariance(
                engine_answers, question_set, answers.ends, tie, b
            ),
        }
        for name in names:
            try:
                outcomes.append(gates[name](dict(gate_bounds[name])))
            except Exception as e:
                outcomes.append(GateOutcome.not_run(name, e))
    evidence["passed"] = all(o.passed for o in outcomes)
    evidence["gates"] = {o.gate: {"passed": o.passed, "summary": o.summary, **o.detail} for o in outcomes}
    return tuple(outcomes), evidence


def find_golden_answer(case: AnswerGateInputs) -> dict[str, Any] | None:
    """Return the golden prompt's answer, which servers compare before they report readiness.

    It is the start that is equal alone and in a batch, up to the first position with two about equally likely
    tokens, where a server may choose the other one. ``None`` if that is empty, or if the prompt does not fit.

    Raises:
        GateError: the answers are missing.
    """
    engine_answers = answer_record.read_engine_answers(case.said)
    question_set = convert_material(
        case.model, *(case.material or load_model_material(case.model, case.questions))
    )
    answer_record.require_same_questions(engine_answers, question_set)
    alone, batch = (
        engine_answers.runs["alone"][question_set.golden],
        engine_answers.runs["batch"][question_set.golden],
    )
    if alone is None or batch is None:
        return None
    pairs = zip(alone.tokens[:GOLDEN], batch.tokens, strict=False)
    tokens = [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    following = engine_answers.next.get(question_set.golden)
    if following is not None:
        gaps = (following.logs[: len(tokens), 0] - following.logs[: len(tokens), 1]).tolist()
        close = (n for n, gap in enumerate(gaps) if not gap > find_kind_row(engine_answers.kind)["tie"])
        tokens = tokens[: next(close, len(tokens))]
    return (
        {"promptTokens": list(question_set.prompts[question_set.golden].tokens), "tokens": tokens}
        if tokens
        else None
    )


def _tokenizer_directory(engine: Path, model: Path, engine_manifest: Manifest) -> Path:
    # Edge-LLM's engines have no tokenizer that transformers reads: their runtime reads the model's.
    return model if find_kind_row(engine_manifest.kind)["tokenizer"] == "model" else engine / "tokenizer"
