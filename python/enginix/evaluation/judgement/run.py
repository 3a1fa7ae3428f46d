"""Run the gate ``logits`` of a reference engine, and require that gates passed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from enginix.errors import EnginixError, GateError
from enginix.evaluation.judgement import logits
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers.prompts import PromptSet
from enginix.model.family_rows import has_exact_gelu
from enginix.reference.executor import Executor
from enginix.tables import load_table

FIX = (
    "see report.html and gates.json; quantize again with more or closer calibration data, take a finer "
    "number format, or change the bound with its reason"
)


def run_logits_gate(
    model: Path,
    load: Callable[[], Executor],
    prompts: PromptSet,
    *,
    tolerance: float | None = None,
    device: str = "cpu",
    stored_reference: tuple[Sequence[torch.Tensor], str] | None = None,
) -> tuple[GateOutcome, ...]:
    """Return the gate's outcome; the reference runs first and is freed before the executor is loaded.

    Args:
        model: Hugging Face model directory, the reference.
        load: loads the judged executor, which computes in float32.
        tolerance: bound of the gate ``logits`` in place of the table's.
        device: the device of the reference.
        stored_reference: the reference's logits and the dtype of its weights, where it need not run again.

    Raises:
        GateError: a gate could not be run. A failed gate is a :class:`GateOutcome`.
        CheckpointError: the checkpoint cannot be loaded at all.
    """
    tokens: Sequence[Sequence[int]] = [p.tokens for p in prompts.prompts]
    try:
        reference, dtype = stored_reference or (
            hf.compute_hf_logits(model, tokens, device),
            hf.read_stored_dtype(model),
        )
        executor = load()
        if tolerance is None:
            exact_gelu = has_exact_gelu(json.loads((model / "config.json").read_bytes()))
            bound, reason = logits.find_tolerance(dtype, executor.config.dtype, exact_gelu)
        else:
            bound, reason = tolerance, "chosen by the user"
        return (logits.compare_logits(prompts, executor.forward(tokens), reference, bound, reason),)
    except EnginixError:
        raise
    except Exception as e:
        raise GateError(
            f"gate {logits.NAME} could not be run: {type(e).__name__}: {e}",
            where=str(model),
            fix="a gate that cannot be run has failed; run again with ENGINIX_TRACEBACK=1 to see why",
        ) from e


def require_gates_passed(outcomes: Sequence[GateOutcome]) -> None:
    """Require that every gate passed, and that there is at least one.

    Raises:
        GateError: a gate failed; the error names the first.
    """
    if not outcomes:
        raise GateError("no gate was run", fix="pass --no-gates if that is intended")
    for outcome in outcomes:
        if not outcome.passed:
            fix = load_table("gates")["gates"].get(outcome.gate, {}).get("fix", FIX)
            if "error" in outcome.detail:
                # Not judged: nothing of the model is to be mended.
                fix = outcome.detail.get("fix", "mend what it names, and gate again")
            raise GateError(f"gate {outcome.gate} failed: {outcome.summary}", fix=fix)


def build_gate_evidence(prompts: PromptSet, outcomes: Sequence[GateOutcome]) -> dict[str, Any]:
    """Return the content of an engine's ``gates.json``; ``passed`` is null where no gate was run."""
    return {
        "format": 1,
        "passed": all(o.passed for o in outcomes) if outcomes else None,
        "promptSet": {"sha256": prompts.sha256, "count": len(prompts.prompts)},
        "gates": {o.gate: {"passed": o.passed, **o.detail} for o in outcomes},
    }
