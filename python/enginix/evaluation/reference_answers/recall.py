"""Questions of long context: facts planted in text of a given length and depth, asked for at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from enginix.tables import load_table

DISTRACTORS = 2  # further planted facts that are not asked for


def build_recall_texts(
    count: Callable[[str], int], max_length: int, filler: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Build the questions: for each length that the model accepts, one text for each depth.

    Args:
        count: returns the number of tokens of a question.
        max_length: of the model, in tokens.
        filler: texts to plant facts in; repeated where they end.

    Returns:
        (id, question with everything before it, exact answer), shortest first. An id is length and depth.
    """
    rows = load_table("gate_facts")
    paragraphs = [p for text in filler for p in text.split("\n\n") if p.strip()]
    empty = count("")
    sizes = [max(1, count(f"{p}\n\n") - empty) for p in paragraphs]
    out: list[tuple[str, str, str]] = []
    for length in (n for n in rows["lengths"] if n <= max_length and paragraphs):
        token_limit = length - rows["answer"]
        for depth in rows["depths"]:
            start = len(out)
            facts = [rows["facts"][(start + n) % len(rows["facts"])] for n in range(1 + DISTRACTORS)]
            used: list[str] = []
            total = count(_plant_facts(used, facts, depth))
            while total < token_limit:
                paragraph_index = (start * 7 + len(used)) % len(paragraphs)
                used.append(paragraphs[paragraph_index])
                total += sizes[paragraph_index]
            while used and count(_plant_facts(used, facts, depth)) > token_limit:
                used.pop()
            if used:
                text_id = f"{length} tokens, depth {depth:g}"
                out.append((text_id, _plant_facts(used, facts, depth), facts[0]["answer"]))
    return out


def _plant_facts(paragraphs: Sequence[str], facts: Sequence[dict[str, str]], depth: float) -> str:
    """Plant the first fact at ``depth``, the others at equal distances after it, wrapping to the start."""
    parts, ends = list(paragraphs), list(accumulate(map(len, paragraphs), initial=0))
    places = [((depth + n / len(facts)) % 1, fact["fact"]) for n, fact in enumerate(facts)]
    for place, fact in sorted(places, reverse=True):
        # Between the two paragraphs that meet nearest to the place.
        parts.insert(min(range(len(ends)), key=lambda n: abs(ends[n] - place * ends[-1])), fact)
    return "\n\n".join([*parts, facts[0]["question"]])
