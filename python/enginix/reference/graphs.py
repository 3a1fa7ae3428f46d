"""Decode steps of fixed shapes, captured once a size as CUDA graphs: Python launches kernels too slowly."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from enginix.reference.cache import KeyValueCache, StaticDecode, move_to_device
from enginix.reference.layers import ForwardStep

# A captured step of a larger size serves a smaller one so often before that is captured, too.
PATIENCE = 16
# Captured steps held for a cache; the one that was not used for longest makes way.
HELD = 64
# Free memory for a capture, in which nothing that is cached can be freed.
CAPTURE_BYTES = 1 << 29

Compute = Callable[[torch.Tensor, ForwardStep, torch.Tensor], None]


def pad_rows(rows: int, slots: int) -> int:
    """Return the rows of the step that serves the first ``rows`` slots: 1, 2, 4, 8 and multiples of 8."""
    return min(slots, 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8)


def pad_width(length: int, capacity: int) -> int:
    """Return the positions that a step over ``length`` of them attends to: at most an eighth or 127 more."""
    step = max(128, 1 << max(0, (length - 1).bit_length() - 3))
    return min(capacity, -(-length // step) * step)


class DecodeSteps:
    """The decode steps of one cache, each over some of its first slots.

    Args:
        compute: (tokens [rows], step, logits float32 [rows, vocab_size] to fill) computes a step.
        cache: the same in every step; not kept, so that it is freed with its last user.
        capture: replay captured steps; otherwise the same steps are computed kernel by kernel.
    """

    def __init__(self, compute: Compute, cache: KeyValueCache, *, capture: bool) -> None:
        self._compute, self.capture = compute, capture
        self._positions = torch.zeros_like(cache.tokens)
        self._logits = torch.empty(cache.slots, cache.config.vocab_size, device=cache.device)
        self._capacity = 0
        self._pool: Any = None
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._wanted: Counter[tuple[int, int]] = Counter()

    def run(self, cache: KeyValueCache, active: Sequence[int]) -> torch.Tensor:
        """Submit one more token of each active slot, the one in the cache's ``tokens``, and do not wait.

        Returns:
            Logits float32 [rows, vocab_size], a row a slot; the next step overwrites them.
        """
        rows = pad_rows(max(active) + 1, cache.slots)
        # Of all slots: a larger captured step computes more rows, which write behind their slots' tokens.
        lengths = cache.lengths
        cache.reserve(max(lengths) + 1)
        width = pad_width(max(lengths[slot] for slot in active) + 1, cache.capacity)
        self._positions.copy_(move_to_device(lengths, cache.device))
        graph = self._find_graph(cache, rows, width) if self.capture else None
        if graph is None:
            self._step(cache, rows, width, [length + 1 for length in lengths[:rows]])
        else:
            graph.replay()
        return self._logits[:rows]

    def _step(self, cache: KeyValueCache, rows: int, width: int, lengths: list[int]) -> None:
        step = StaticDecode(cache, self._positions[:rows], width, cache.rope, lengths)
        self._compute(cache.tokens[:rows], step, self._logits[:rows])

    def _find_graph(self, cache: KeyValueCache, rows: int, width: int) -> torch.cuda.CUDAGraph | None:
        """Return a captured step of at least this size, captured now where that pays."""
        if self._capacity != cache.capacity:  # the cache has other tensors now
            self._graphs.clear()
            self._pool = None
            self._capacity = cache.capacity
        size = (rows, width)
        self._wanted[size] += 1
        larger = [held for held in self._graphs if held[0] >= rows and held[1] >= width]
        if larger and self._wanted[size] <= PATIENCE:
            size = min(larger)
        elif size not in self._graphs:
            try:
                graph = self._capture(cache, rows, width)
            except RuntimeError as e:
                warnings.warn(f"decode steps are not captured: {e}", RuntimeWarning, stacklevel=2)
                self.capture, graph = False, None
            if graph is None:
                return None
            self._graphs[size] = graph
        graph = self._graphs[size] = self._graphs.pop(size)  # the latest is the last
        if len(self._graphs) > HELD:
            del self._graphs[next(iter(self._graphs))]
        return graph

    def _capture(self, cache: KeyValueCache, rows: int, width: int) -> torch.cuda.CUDAGraph | None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(cache.device)  # type: ignore[no-untyped-call]
        if torch.cuda.mem_get_info(cache.device)[0] < CAPTURE_BYTES:
            torch.cuda.empty_cache()
            if torch.cuda.mem_get_info(cache.device)[0] < CAPTURE_BYTES:
                return None
        stream.wait_stream(torch.cuda.current_stream(cache.device))
        with torch.cuda.stream(stream):
            # Once uncaptured: libraries set themselves up. What it stores is stored again by the replay.
            self._step(cache, rows, width, [])
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                self._step(cache, rows, width, [])
            finally:
                graph.capture_end()
        self._pool = graph.pool()  # shared: steps are replayed one after the other
        torch.cuda.current_stream(cache.device).wait_stream(stream)
        return graph
