"""Gate ``positions``: the same next tokens at every length, up to all tokens that the model accepts."""

from __future__ import annotations

from typing import Any

import torch

from enginix.errors import GateError
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.judgement.quality import compute_divergence, round_figure
from enginix.evaluation.reference_answers.answers import Passage, ReferenceAnswers, score_positions
from enginix.evaluation.reference_answers.material import Material, sample_positions
from enginix.evaluation.reference_answers.subject import Subject

NAME = "positions"


def judge_positions(
    subject: Subject, material: Material, answers: ReferenceAnswers, bounds: dict[str, Any]
) -> GateOutcome:
    """Compare next-token distributions on one long text, octave by octave of positions.

    Args:
        bounds: ``kl`` at most in each octave; ``drift`` at most between an octave's divergence and the
            least of those before it, where it is above ``kl`` / 4 at all.

    Raises:
        GateError: the reference has no long text, or the engine's logits are not finite.
    """
    if answers.long is None:
        raise GateError("the reference scored no long text", fix="make its answers again: enginix reference")
    octaves = sample_positions(min(len(material.long), subject.max_length))
    positions = [position for octave in octaves for position in octave]
    expected = [p for octave in sample_positions(len(material.long)) for p in octave]
    if len(answers.long.text_logs) != len(expected):
        raise GateError("the reference's answers are to another long text", fix="make them again")
    index = {position: n for n, position in enumerate(expected)}
    rows = []
    # An engine that accepts less than its model is asked for the start, where the same positions count.
    kept = [[position for position in octave if position in index] for octave in octaves]
    positions = [position for octave in kept for position in octave]
    if not positions:
        raise GateError(f"the engine accepts {subject.max_length} tokens: no position can be compared")
    text = material.long[: min(len(material.long), subject.max_length)]
    passage, logs = score_positions(subject, text, positions)
    picked = torch.tensor([index[position] for position in positions])
    reference = Passage(*(part[picked] for part in vars(answers.long).values()))
    divergence = compute_divergence(
        logs, Passage(*(part.to(logs.device) for part in vars(reference).values()))
    ).cpu()
    same = (passage.ids[:, 0] == reference.ids[:, 0]).float()
    start = 0
    for octave in kept:
        part = slice(start, start + len(octave))
        start += len(octave)
        if octave:
            rows.append(
                {
                    "to": octave[-1],
                    "kl": float(divergence[part].mean()),
                    "top1": float(same[part].mean()),
                    "positions": len(octave),
                }
            )
    faults, least = [], float("inf")
    for row in rows:
        if not row["kl"] <= bounds["kl"]:
            faults.append(f"KL {row['kl']:.2g} up to position {row['to']}, {bounds['kl']:g} allowed")
        elif row["kl"] > bounds["kl"] / 4 and row["kl"] > bounds["drift"] * least:
            faults.append(
                f"KL {row['kl']:.2g} up to position {row['to']}, {row['kl'] / least:.2g} times the least "
                f"before it, {bounds['drift']:g} allowed"
            )
        least = min(least, row["kl"])
    worst = max(rows, key=lambda row: row["kl"])
    summary = "; ".join(faults[:3]) or (
        f"{len(positions)} positions up to {rows[-1]['to']}: KL at most {worst['kl']:.2g} in an octave "
        f"({bounds['kl']:g} allowed)"
    )
    octave_rows = [{**row, "kl": round_figure(row["kl"]), "top1": round_figure(row["top1"])} for row in rows]
    detail = {
        **bounds,
        "positions": len(positions),
        "longest": len(text),
        "klFound": round_figure(float(divergence.mean())),
        "klHighest": round_figure(worst["kl"]),
        "byPosition": octave_rows,
        "faults": faults,
    }
    return GateOutcome(NAME, not faults, summary, detail)
