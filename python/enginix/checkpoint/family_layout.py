"""How models arrange the rows of queries, keys and values, and of gate and up, and how ranks cut them.

The kinds of arrangement are a closed list, one function each: ``split_heads`` (three matrices),
``cut_blocks`` (all q, all k, all v), ``cut_groups`` (the q heads of a KV head, its k, its v) and swapped
halves (``swap_halves``). Source: golden data of families.
"""

from __future__ import annotations

from enginix.checkpoint.rank_modules import split_evenly

Range = tuple[int, int]


def select_heads(heads: int, kv_heads: int, tp: int, tp_rank: int) -> tuple[Range, Range]:
    """Return the heads and the KV heads of a rank; with more ranks than KV heads, ranks share one."""
    first = tp_rank * kv_heads // tp
    kv = split_evenly(kv_heads, tp, tp_rank) if kv_heads >= tp else (first, first + 1)
    return split_evenly(heads, tp, tp_rank), kv


def split_heads(counts: tuple[int, int, int], ranges: tuple[Range, Range, Range]) -> list[tuple[int, Range]]:
    """Return matrix number and heads of each slice, where q, k and v are matrices of their own."""
    return list(enumerate(ranges))


def cut_blocks(counts: tuple[int, int, int], ranges: tuple[Range, Range, Range]) -> list[tuple[int, Range]]:
    """Return the slices of one matrix of all q, all k, all v heads."""
    starts = (0, counts[0], counts[0] + counts[1])
    return [(0, (start + begin, start + end)) for start, (begin, end) in zip(starts, ranges, strict=True)]


def cut_groups(counts: tuple[int, int, int], ranges: tuple[Range, Range, Range]) -> list[tuple[int, Range]]:
    """Return the slices of one matrix of groups, each the q heads of a KV head, its k and its v.

    With as many KV heads as heads this is q, k, v of each head in turn; with one it is ``cut_blocks``.
    """
    queries = counts[0] // counts[1]
    begin, end = ranges[0]
    slices = []
    for group in range(counts[1]):
        first, last = max(begin, group * queries), min(end, (group + 1) * queries)
        if first < last:
            shift = group * 2  # the k and v heads of earlier groups
            slices.append((0, (first + shift, last + shift)))
    for number, part in enumerate(ranges[1:]):
        for group in range(*part):
            head = group * (queries + 2) + queries + number
            slices.append((0, (head, head + 1)))
    return slices


QKV_KINDS = {"split": split_heads, "blocks": cut_blocks, "groups": cut_groups}


def join_neighbours(slices: list[tuple[int, Range]]) -> list[tuple[int, Range]]:
    """Return the slices with those joined that follow each other in one matrix: one read serves them."""
    joined: list[tuple[int, Range]] = []
    for number, (begin, end) in slices:
        if joined and joined[-1][0] == number and joined[-1][1][1] == begin:
            joined[-1] = (number, (joined[-1][1][0], end))
        else:
            joined.append((number, (begin, end)))
    return joined


def swap_halves(width: int, part: Range) -> tuple[Range, Range]:
    """Return the rows of ``part`` in the second half of a matrix of two halves, then in the first."""
    return (width + part[0], width + part[1]), part
