"""Server-sent events by the standard's own words, and by how they are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enginix.gateway import events
from enginix.gateway.events import EventParser, EventTooLarge

# What Python's str.splitlines ends lines at besides.
OTHERS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        # The three examples of the standard, section 9.2.6.
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
         ["first event", "second event", " third event"]),
        (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),
        (b"data:test\n\ndata: test\n\n", ["test", "test"]),
        (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", ["a", "b", "c"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"event: x\nretry: 3\n\n", []),
        (f"data: {OTHERS}\n\n".encode(), [OTHERS]),
    ],
)  # fmt: skip
def test_the_standards_examples(raw: bytes, found: list[str]) -> None:
    parser = EventParser()
    assert parser.feed(raw) == found
    parser = EventParser()
    assert [data for i in range(len(raw)) for data in parser.feed(raw[i : i + 1])] == found


@given(
    st.lists(st.text(max_size=12), max_size=5),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
    st.lists(st.integers(1, 9), max_size=30),
)
@example(["\u2028", "\u0085"], b"\r\n", [1] * 30)
def test_texts_come_back_however_they_are_cut(texts: list[str], end: bytes, cuts: list[int]) -> None:
    raw = b"".join(
        b"data: " + json.dumps(text, ensure_ascii=False).encode("utf-8", "replace") + end + end
        for text in texts
    )
    parser, found = EventParser(), list[str]()
    for size in cuts:
        found += parser.feed(raw[:size])
        raw = raw[size:]
    found += parser.feed(raw)
    assert [json.loads(data) for data in found] == [t.encode("utf-8", "replace").decode() for t in texts]


def test_an_event_without_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_BYTES", 1000)
    for row in (b"x" * 10, b"data: x\n"):
        parser = EventParser()
        with pytest.raises(EventTooLarge):
            for _ in range(2000):
                parser.feed(row)
