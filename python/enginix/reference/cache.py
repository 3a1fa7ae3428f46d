"""The KV cache, and the kinds of step that use it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from enginix.reference.executor_config import ExecutorConfig
from enginix.reference.rope import RopeTables

BLOCK = 256


def move_to_device(
    values: Sequence[int] | Sequence[Sequence[float]], device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """Return a tensor on a device, without waiting for the work under way there."""
    made = torch.tensor(values, dtype=dtype)
    return made if device.type == "cpu" else made.pin_memory().to(device, non_blocking=True)


class KeyValueCache:
    """Keys and values of ``slots`` sequences.

    Capacity grows with the longest sequence. A slot belongs to one sequence from prefill until it is reused.

    Attributes:
        stored: of each layer its keys, then its values, [slots, 2 kv_heads, capacity, head_size].
        lengths: tokens stored of each slot's sequence.
        tokens: int64 [slots] on the device, each sequence's next token for :meth:`Executor.decode_stored`.
    """

    def __init__(
        self, config: ExecutorConfig, slots: int, rope: RopeTables, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.slots, self.rope, self.device = config, slots, rope, device
        self.capacity = 0
        self.lengths = [0] * slots
        self.tokens = torch.zeros(slots, device=device, dtype=torch.int64)
        empty = torch.empty(slots, 2 * config.kv_heads, 0, config.head_size, device=device, dtype=dtype)
        self.stored = [empty] * config.layers

    def reserve(self, length: int) -> None:
        """Grow the cache for sequences of ``length`` tokens; stored keys and values stay."""
        if length <= self.capacity:
            return
        capacity = -(-max(length, self.capacity * 3 // 2) // BLOCK) * BLOCK
        for layer, old in enumerate(self.stored):
            if old.shape[2] >= capacity:  # a growth that failed midway left it so
                continue
            # Zeros, not garbage: masked positions are multiplied by 0, and 0 × NaN is NaN.
            new = torch.zeros(*old.shape[:2], capacity, old.shape[3], device=old.device, dtype=old.dtype)
            new[:, :, : old.shape[2]] = old
            self.stored[layer] = new
        self.capacity = capacity


class Prefill:
    """A step over several tokens of one sequence, from ``start`` on; causal.

    Without a cache nothing is stored, and ``start`` is 0.
    """

    def __init__(
        self, cache: KeyValueCache | None, slot: int, start: int, count: int, rope: RopeTables
    ) -> None:
        self.cache, self.slot, self.start, self.end = cache, slot, start, start + count
        self.positions = positions = torch.arange(start, self.end, device=rope.device)
        self.cos, self.sin = rope.tables(positions, [self.end])
        self.mask: torch.Tensor | None = None
        self.cap = rope.config.form.score_cap
        if start:
            if rope.device.type == "cpu" or self.cap is not None:
                self.mask = torch.arange(self.end)[None, :] <= positions[:, None]
            else:
                # GPUs have kernels for a part of a causal mask; a whole one would take [count, end] numbers.
                # Imported late: it brings PyTorch's compiler, and seconds.
                from torch.nn.attention.bias import causal_lower_right

                self.mask = causal_lower_right(count, self.end)
        if (bias := rope.score_bias(self.end)) is not None:
            unseen = torch.arange(self.end, device=rope.device)[None, :] > positions[:, None]
            self.mask = bias.flatten(0, 1)[:, None].masked_fill(unseen, -torch.inf)
        if cache is not None:
            cache.reserve(self.end)

    def attend(self, layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        pair = kv.transpose(0, 1)
        if self.cache is not None:
            stored = self.cache.stored[layer][self.slot]
            stored[:, self.start : self.end] = pair
            if self.start:
                pair = stored[:, : self.end]
        keys, values = pair.chunk(2)
        out = attend_causally(q.transpose(0, 1)[None], keys[None], values[None], self.mask, self.cap)
        return out[0].transpose(0, 1)


def attend_causally(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    cap: float | None = None,
) -> torch.Tensor:
    """Return causal attention of q [rows, heads, T, head_size] over keys and values of fewer heads."""
    if cap is not None:
        if mask is None:
            mask = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool, device=q.device).tril()
        keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (keys, values))
        return attend_capped(q, keys, values, mask, cap)
    if isinstance(mask, torch.Tensor) and mask.is_floating_point():
        mask = mask.to(q.dtype)
    if q.device.type != "cpu" and (mask is not None or q.dtype is torch.float32):
        # Kernels of these cases have no groups of heads; without one every score would be stored.
        keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (keys, values))
    return scaled_dot_product_attention(
        q, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != keys.shape[1]
    )


def attend_capped(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, cap: float
) -> torch.Tensor:
    """Return attention whose scores are cap · tanh(score / cap), which no kernel of PyTorch has."""
    scores = torch.tanh(q @ keys.transpose(-1, -2) / (math.sqrt(q.shape[-1]) * cap)) * cap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ values


class PackedPrompts:
    """A step over several new sequences, packed one behind the other: products see all tokens at once, and
    attention sees each sequence by itself. Sequences of one length have one attention call. Without a
    cache nothing is stored.
    """

    def __init__(self, cache: KeyValueCache | None, prompts: Mapping[int, int], rope: RopeTables) -> None:
        self.cache, self.counts = cache, list(prompts.values())
        if cache is not None:
            self.slots = move_to_device(list(prompts), cache.device)
            cache.reserve(max(self.counts))
        self.parts = [Prefill(cache, slot, 0, count, rope) for slot, count in prompts.items()]
        self.cos, self.sin, self.positions = (
            torch.cat([getattr(p, name) for p in self.parts]) for name in ("cos", "sin", "positions")
        )

    def attend(self, layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        if len(set(self.counts)) > 1:
            prompt_parts = zip(self.parts, *(torch.split(x, self.counts) for x in (q, kv)), strict=True)
            return torch.cat([part.attend(layer, *tensors) for part, *tensors in prompt_parts])
        rows, count = len(self.counts), self.counts[0]
        # [rows, heads, count, head_size]
        queries, pair = (x.view(rows, count, *x.shape[1:]).transpose(1, 2) for x in (q, kv))
        if self.cache is not None:
            self.cache.stored[layer][self.slots, :, :count] = pair
        keys, values = pair.chunk(2, 1)
        out = attend_causally(queries, keys, values, self.parts[0].mask, self.parts[0].cap)
        return out.transpose(1, 2).reshape(q.shape)


class Decode:
    """A step of one token for each active slot, on the CPU. Row r of the packed tokens is slot r; idle rows
    run too.

    The number of rows is always the number of slots, so that matrix products have one shape for any number of
    active slots. Each slot's attention runs separately, over its own length, so that no bit of a row depends
    on the others.
    """

    def __init__(self, cache: KeyValueCache, active: list[int], rope: RopeTables) -> None:
        self.cache, self.active = cache, active
        # Idle rows, too, write behind their slot's tokens, where its next token will overwrite the values.
        self.lengths = [length + 1 for length in cache.lengths]
        cache.reserve(max(self.lengths))
        self.positions = torch.tensor(self.lengths, device=rope.device) - 1
        self.row_ids = torch.arange(cache.slots, device=rope.device)
        self.cos, self.sin = rope.tables(self.positions, self.lengths)
        self.bias, self.cap = rope.score_bias(max(self.lengths)), rope.config.form.score_cap

    def attend(self, layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        grouped, keys, values = store_decoded(self.cache.stored[layer], self.row_ids, self.positions, q, kv)
        out = torch.zeros_like(grouped)
        for slot in self.active:
            row, end = slice(slot, slot + 1), self.lengths[slot]
            mask = None if self.bias is None else self.bias[None, ..., :end].to(q.dtype)
            seen = keys[row, :, :end], values[row, :, :end]
            if self.cap is not None:
                out[row] = attend_capped(grouped[row], *seen, mask, self.cap)
            else:
                out[row] = scaled_dot_product_attention(grouped[row], *seen, attn_mask=mask)
        return out.view(q.shape)


class StaticDecode:
    """A step of one token for each of the first slots, in shapes that do not depend on lengths: one masked
    attention call over the first ``width`` positions of all.

    Args:
        positions: int64 [rows], of the new tokens; read on the device whenever the step is computed.
        lengths: of the sequences with their new tokens, for rotations that depend on them.
    """

    def __init__(
        self, cache: KeyValueCache, positions: torch.Tensor, width: int, rope: RopeTables, lengths: list[int]
    ) -> None:
        self.positions, self.width = positions, width
        self.row_ids = torch.arange(len(positions), device=positions.device)
        self.cap = rope.config.form.score_cap
        self.stored = [stored[: len(positions)] for stored in cache.stored]
        self.cos, self.sin = rope.tables(positions, lengths)
        unseen = torch.arange(width, device=positions.device) > positions[:, None]
        # Numbers, which kernels take as they are: truth values would be converted in every layer.
        mask = torch.zeros_like(unseen, dtype=self.stored[0].dtype).masked_fill_(unseen, -torch.inf)
        self.mask = mask[:, None, None, :]
        if (bias := rope.score_bias(width)) is not None:
            self.mask = self.mask + bias.to(mask.dtype)

    def attend(self, layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        grouped, keys, values = store_decoded(self.stored[layer], self.row_ids, self.positions, q, kv)
        keys, values = keys[:, :, : self.width], values[:, :, : self.width]
        if self.cap is not None:
            return attend_capped(grouped, keys, values, self.mask, self.cap).reshape(q.shape)
        return scaled_dot_product_attention(grouped, keys, values, attn_mask=self.mask).reshape(q.shape)


def store_decoded(
    stored: torch.Tensor, row_ids: torch.Tensor, at: torch.Tensor, q: torch.Tensor, kv: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put each row's keys and values at its position, and return queries and all keys and values.

    Query heads of a key-value head become positions, [rows, kv_heads, group, size]: no copy of the cache.
    """
    rows, heads, size = kv.shape
    stored[row_ids, :, at] = kv
    keys, values = stored.chunk(2, 1)
    return q.view(rows, heads // 2, -1, size), keys, values
