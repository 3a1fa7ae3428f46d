"""``report.html`` holds what ``gates.json`` holds, escaped, without network."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.report import html, svg

VOID = {"meta", "col"}


class Checker(HTMLParser):
    """Every tag is closed in order; addresses are gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href")]
        assert tag not in ("script", "img", "link", "iframe", "object"), tag
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == [] and checker.links == [] and "http" not in page
    return checker


def told(text: str = "", passed: bool = True) -> dict[str, Any]:
    return {
        "format": 1,
        "passed": passed,
        "reference": {"repo": text},
        "layerErrors": [0.01, 0.02, 0.05],
        "bounds": {"format": "FP8", "reason": f"because {text}"},
        "material": {"sha256": "ab", "passages": 1, "prompts": 1, "questions": 1, "tokens": 9},
        "gates": {
            "agreement": {
                "passed": passed, "summary": f"agreed {text}", "top1": 0.9, "kl": 0.1,
                "byPosition": [{"from": n, "top1": 0.95 - n / 800, "tokens": 9} for n in (0, 32)],
            },
            "perplexity": {
                "passed": True, "summary": "fine", "ratio": 1.1, "ratioFound": 1.01, "interval": [0.99, 1.03],
                "found": 10.0, "reference": 9.9, "tokens": 9,
            },
            "smoke": {
                "passed": True, "summary": "", "answers": [{"prompt": text, "engine": text, "reference": "b"}]
            },
            "task": {
                "passed": True, "summary": "",
                "replies": [{"question": text, "answer": "4", "engine": text, "reference": "4",
                             "right": [False, True]}],
            },
        },
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\0"), max_size=30))
def test_any_text_is_only_text(text: str) -> None:
    page = parsed(html.report(text, told(text)))
    assert text.strip() in page.text or "http" in text


def test_the_verdict_is_on_top() -> None:
    assert "Accepted: all 4 gates passed" in html.report("e", told())
    page = html.report("e", told("by little", passed=False))
    assert page.index("Rejected: agreement failed") < page.index("agreed by little") < page.index("<table")
    assert "Not gated" in html.report("e", {"passed": None, "gates": {}})


def test_gates_that_could_not_run_are_shown() -> None:
    smoke = {"passed": False, "summary": "could not be run: x", "error": "x"}
    content = {"passed": False, "gates": {"smoke": smoke}, "layerErrors": "ZeroDivisionError: <y>"}
    page = html.report("e", content)
    parsed(page)
    assert "could not be run: x" in page and "ZeroDivisionError: &lt;y&gt;" in page


def test_the_same_evidence_gives_the_same_bytes() -> None:
    again = json.loads(json.dumps(told("x")))
    assert html.report("e", told("x")) == html.report("e", again)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=80),
    st.lists(st.floats(0.5, 3), min_size=4, max_size=4),
)
def test_charts_are_well_formed_and_inside(
    shares: list[float], errors: list[float], four: list[float]
) -> None:
    low, middle, high = sorted(four[:3])
    for chart in (
        svg.line("a", [(32.0 * i, s) for i, s in enumerate(shares)], "x", 0.9),
        svg.bars("b", errors, "x"),
        svg.interval("c", middle, (low, high), four[3]),
    ):
        root = ElementTree.fromstring(chart)
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for node in root.iter():
            for key, most in (("cx", width), ("x1", width), ("cy", height), ("y1", height), ("y", height)):
                assert -1 <= float(node.attrib.get(key, 0)) <= most + 1


def test_differences_are_marked() -> None:
    assert html.marked("a big cat", "a bad cat") == "a b<mark>ig</mark> cat"
    assert "nothing" in html.marked("", "x") and html.marked("<b>", "<b>") == "&lt;b&gt;"
