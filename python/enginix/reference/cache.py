"""The KV cache, and the kinds of step that use it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import scaled_dot_product_attention

from enginix.reference.config import ExecutorConfig
from enginix.reference.rope import RopeTables

BLOCK = 256
ALIGNED = 64


class KeyValueCache:
    """Keys and values of ``slots`` sequences, each [slots, kv_heads, capacity, head_size] a layer.

    Capacity grows with the longest sequence. A slot belongs to one sequence from prefill until it is reused.
    """

    def __init__(
        self, config: ExecutorConfig, slots: int, rope: RopeTables, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.slots, self.rope, self.device = config, slots, rope, device
        self.capacity = 0
        self.lengths = [0] * slots
        empty = (slots, config.kv_heads, 0, config.head_size)
        self.keys = [torch.empty(empty, device=device, dtype=dtype) for _ in range(config.layers)]
        self.values = [torch.empty(empty, device=device, dtype=dtype) for _ in range(config.layers)]

    def reserve(self, length: int) -> None:
        """Grow the cache for sequences of ``length`` tokens; stored keys and values stay."""
        if length <= self.capacity:
            return
        capacity = -(-max(length, self.capacity * 3 // 2) // BLOCK) * BLOCK
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                if old.shape[2] >= capacity:  # a growth that failed midway left it so
                    continue
                # Zeros, not garbage: masked positions are multiplied by 0, and 0 × NaN is NaN.
                new = torch.zeros(*old.shape[:2], capacity, old.shape[3], device=old.device, dtype=old.dtype)
                new[:, :, : old.shape[2]] = old
                tensors[layer] = new
        self.capacity = capacity


class Prefill:
    """A step over several tokens of one sequence, from ``start`` on; causal.

    Without a cache nothing is stored, and ``start`` is 0.
    """

    def __init__(
        self, cache: KeyValueCache | None, slot: int, start: int, count: int, rope: RopeTables
    ) -> None:
        self.cache, self.slot, self.start, self.end = cache, slot, start, start + count
        positions = torch.arange(start, self.end, device=rope.device)
        self.cos, self.sin = rope.tables(positions, [self.end])
        self.mask: torch.Tensor | None = None
        if start:
            self.mask = torch.arange(self.end, device=rope.device)[None, :] <= positions[:, None]
        if cache is not None:
            cache.reserve(self.end)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values = k.transpose(0, 1), v.transpose(0, 1)
        if self.cache is not None:
            stored = self.cache.keys[layer][self.slot], self.cache.values[layer][self.slot]
            stored[0][:, self.start : self.end] = keys
            stored[1][:, self.start : self.end] = values
            if self.start:
                keys, values = stored[0][:, : self.end], stored[1][:, : self.end]
        out = scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=self.mask,
            is_causal=self.mask is None,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)


class PackedPrompts:
    """A step over several new sequences, packed one behind the other: products see all tokens at once, and
    attention sees each sequence by itself. Sequences of one length have one attention call.
    """

    def __init__(self, cache: KeyValueCache, prompts: Mapping[int, int], rope: RopeTables) -> None:
        self.cache, self.counts = cache, list(prompts.values())
        self.slots = torch.tensor(list(prompts), device=rope.device)
        cache.reserve(max(self.counts))
        self.parts = [Prefill(cache, slot, 0, count, rope) for slot, count in prompts.items()]
        self.cos, self.sin = (torch.cat([getattr(p, name) for p in self.parts]) for name in ("cos", "sin"))

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if len(set(self.counts)) > 1:
            prompt_parts = zip(self.parts, *(torch.split(x, self.counts) for x in (q, k, v)), strict=True)
            return torch.cat([part.attend(layer, *tensors) for part, *tensors in prompt_parts])
        rows, count = len(self.counts), self.counts[0]
        queries, keys, values = (
            x.view(rows, count, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)
        )  # [rows, heads, count, head_size]
        self.cache.keys[layer][self.slots, :, :count] = keys
        self.cache.values[layer][self.slots, :, :count] = values
        out = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(q.shape)


class Decode:
    """A step of one token for each active slot. Row r of the packed tokens is slot r; idle rows run too.

    The number of rows is always the number of slots, so that matrix products have one shape for any number of
    active slots. On the CPU each slot's attention runs separately, over its own length, so that no bit of a
    row depends on the others. On other devices one masked call serves all slots.
    """

    def __init__(self, cache: KeyValueCache, active: list[int], rope: RopeTables) -> None:
        self.cache, self.active = cache, active
        self.alone = rope.device.type == "cpu"
        # Idle rows, too, write behind their slot's tokens, where its next token will overwrite the values.
        self.lengths = [length + 1 for length in cache.lengths]
        cache.reserve(max(self.lengths))
        longest = max(self.lengths[slot] for slot in active)
        # Whole blocks: attention kernels want masks of aligned width, and would copy others in every layer.
        self.width = min(-(-longest // ALIGNED) * ALIGNED, cache.capacity)
        self.positions = torch.tensor(self.lengths, device=rope.device) - 1
        self.cos, self.sin = rope.tables(self.positions, self.lengths)
        seen = torch.arange(self.width, device=rope.device)[None, :] <= self.positions[:, None]
        self.mask = seen[:, None, None, :]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        rows, kv_heads, size = k.shape
        index = self.positions[:, None, None, None].expand(rows, kv_heads, 1, size)
        keys.scatter_(2, index, k[:, :, None])
        values.scatter_(2, index, v[:, :, None])
        # The query heads that share a key-value head become query positions: no copy of the cache is made.
        grouped = q.view(rows, kv_heads, -1, size)
        if not self.alone:
            keys, values = keys[:, :, : self.width], values[:, :, : self.width]
            return scaled_dot_product_attention(grouped, keys, values, attn_mask=self.mask).reshape(q.shape)
        out = torch.zeros_like(grouped)
        for slot in self.active:
            row, end = slice(slot, slot + 1), self.lengths[slot]
            out[row] = scaled_dot_product_attention(grouped[row], keys[row, :, :end], values[row, :, :end])
        return out.view(q.shape)
