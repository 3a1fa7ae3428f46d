"""Gate ``logits``: the checkpoint computes the same function as the model.

The gate compares the reference executor's logits on the checkpoint with transformers' on the model, in
float32, over the pinned prompts. It detects faults of a conversion: a permuted, mis-cut, scaled or missing
tensor, a wrong rotary base, a forgotten bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from enginix.errors import GateError
from enginix.evaluation.judgement.outcome import GateOutcome, round_up_bound
from enginix.evaluation.reference_answers.prompts import PromptSet
from enginix.tables import load_table
from enginix.wording import with_article

NAME = "logits"


def find_tolerance(model_dtype: str, checkpoint_dtype: str, exact_gelu: bool = False) -> tuple[float, str]:
    """Return the default bound for a pair of dtypes, and its reason (``data/judgement/gates.json``).

    Args:
        exact_gelu: the model's activation is the GELU that TensorRT-LLM, and so the executor, approximates.

    Raises:
        GateError: the table has no such pair.
    """
    table = load_table("gates")["gates"][NAME]
    for row in table["tolerances"]:
        if model_dtype in row["model"] and checkpoint_dtype == row["checkpoint"]:
            if exact_gelu and table["exactGelu"]["tolerance"] > row["tolerance"]:
                row = table["exactGelu"]
            return float(row["tolerance"]), str(row["reason"])
    raise GateError(
        f"no bound is known for {model_dtype} weights in {with_article(checkpoint_dtype)} checkpoint",
        where="gates.json",
        fix="pass one with --tolerance",
    )


def relative_error(computed: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return |computed - reference| / |reference - its mean| at each position, in double precision.

    Args:
        computed, reference: logits [T, vocab_size].

    Returns:
        float64 [T]. The mean is taken out of the reference because softmax ignores it: a large common offset
        must not make errors look small.

    Raises:
        GateError: shapes differ, a value is not finite, or the reference's logits are all equal.
    """
    if computed.shape != reference.shape or computed.numel() == 0:
        raise GateError(
            f"logits of shape {list(computed.shape)}, the reference's are {list(reference.shape)}"
        )
    a, b = computed.double().cpu(), reference.double().cpu()
    for name, value in (("the executor's", a), ("the reference's", b)):
        if not bool(torch.isfinite(value).all()):
            raise GateError(f"{name} logits hold NaN or infinity")
    scale = (b - b.mean(-1, keepdim=True)).norm(dim=-1)
    if not bool((scale > 0).all()):
        raise GateError("the reference's logits are all equal at some position")
    error: torch.Tensor = (a - b).norm(dim=-1) / scale
    return error


def compare_logits(
    prompts: PromptSet,
    computed: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    bound: float,
    reason: str,
) -> GateOutcome:
    """Return the gate's outcome for computed logits, in the order of the prompts.

    Raises:
        GateError: as :func:`relative_error`, with the prompt named; or no logits to compare.
    """
    if not prompts.prompts or not len(computed) == len(reference) == len(prompts.prompts):
        raise GateError(
            f"{len(prompts.prompts)} prompts, {len(computed)} answers, {len(reference)} references"
        )
    rows, worst, worst_at = [], -1.0, ("", 0)
    agree = positions = 0
    for prompt, engine_logits, reference_logits in zip(prompts.prompts, computed, reference, strict=True):
        try:
            errors = relative_error(engine_logits, reference_logits)
        except GateError as e:
            raise GateError(f"gate {NAME}: {e.what}", where=f"prompt {prompt.id}") from e
        same = int((engine_logits.cpu().argmax(-1) == reference_logits.cpu().argmax(-1)).sum())
        agree, positions = agree + same, positions + len(errors)
        highest = float(errors.max())
        if highest > worst:
            worst, worst_at = highest, (prompt.id, int(errors.argmax()))
        rows.append(
            {"prompt": prompt.id, "tokens": len(prompt.tokens), "errorAtMost": round_up_bound(highest)}
        )
    # A comparison with NaN is false: only a number that is at most the bound passes.
    passed = worst <= bound
    summary = (
        f"relative error {worst:.2g} (prompt {worst_at[0]}, position {worst_at[1]}), {bound:g} allowed; "
        f"most likely token equal at {agree} of {positions} positions"
    )
    detail = {
        "measure": load_table("gates")["gates"][NAME]["measure"],
        "tolerance": bound,
        "reason": reason,
        "errorAtMost": round_up_bound(worst),
        "prompts": rows,
    }
    return GateOutcome(NAME, passed, summary, detail)
