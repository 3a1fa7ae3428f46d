"""Inputs of a step: pieces of several sequences, each in a slot with a KV cache of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from enginix.kinds.rtx.engine_description import EngineShape

StepInputs = dict[str, torch.Tensor]


def make_step_inputs(
    shape: EngineShape, pieces: Mapping[int, Sequence[int]], lengths: Sequence[int]
) -> StepInputs:
    """Return the inputs of a step.

    A slot without a piece computes padding behind its own tokens, which the next piece overwrites.

    Args:
        pieces: slot → at least one token, and at most ``step_tokens``.
        lengths: tokens that each slot has already.

    Returns:
        All inputs besides the caches: ``input_ids`` int32 [slots, step_tokens], padded on the right;
        ``write_indices`` int32 [slots], the tokens that each slot has already; ``last_indices`` int32
        [slots, 1], the last token of each slot's piece.
    """
    rows = len(lengths)
    input_ids = torch.zeros(rows, shape.step_tokens, dtype=torch.int32)
    last = torch.zeros(rows, 1, dtype=torch.int32)
    for slot, piece in pieces.items():
        assert 0 < len(piece) <= shape.step_tokens
        input_ids[slot, : len(piece)] = torch.tensor(piece, dtype=torch.int32)
        last[slot, 0] = len(piece) - 1
    # A full sequence has no place behind it, and no further step.
    first = [min(length, shape.max_seq_len - 1) for length in lengths]
    write_indices = torch.tensor(first, dtype=torch.int32)
    return {"input_ids": input_ids, "write_indices": write_indices, "last_indices": last}
