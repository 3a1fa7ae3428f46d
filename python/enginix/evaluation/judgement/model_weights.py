"""Gate ``weights``: every tensor of a checkpoint is its model's, within a step of its number format."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.verify import verify_checkpoint
from enginix.evaluation.judgement.outcome import GateOutcome

NAME = "weights"
SHOWN = 20


def judge_weights(checkpoint: Path, models: Mapping[str, Path], bounds: Mapping[str, Any]) -> GateOutcome:
    """Compare configuration and tensors with the model's, without executing either.

    Args:
        models: what a model is to the checkpoint → its directory: the one before quantization, and the one
            that was converted, whose scales of activations are in no other.
        bounds: ``steps``, a factor on the steps that rounding leaves.

    Raises:
        EnginixError: checkpoint or model cannot be read.
    """
    report = verify_checkpoint(checkpoint)
    faults = [str(finding) for finding in report.findings[:SHOWN]]
    for what, model in models.items():
        comparison = CheckpointComparison(checkpoint, model, bounds["steps"])
        faults += [f"{finding} ({what})" for finding in itertools.islice(comparison.findings(), SHOWN)]
    compared = " and ".join(models)
    summary = (
        f"{len(faults)} differ: {'; '.join(faults[:3])}"
        if faults
        else f"{report.parameters} parameters and the configuration are those of {compared}"
    )
    return GateOutcome(NAME, not faults, summary, {**bounds, "comparedWith": list(models), "faults": faults})
