"""``report.html`` holds what ``gates.json`` holds, escaped, without network."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_support import parsed, told

from enginix.report import html, svg


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\0"), max_size=30))
def test_any_text_is_only_text(text: str) -> None:
    page = parsed(html.render_gate_report(text, told(text)))
    assert text.strip() in page.text or "http" in text


def test_the_verdict_is_on_top() -> None:
    assert "Accepted: all 4 gates passed" in html.render_gate_report("e", told())
    page = html.render_gate_report("e", told("by little", passed=False))
    assert page.index("Rejected: agreement failed") < page.index("agreed by little") < page.index("<table")
    assert "Not gated" in html.render_gate_report("e", {"passed": None, "gates": {}})


def test_gates_that_could_not_run_are_shown() -> None:
    smoke = {"passed": False, "summary": "could not be run: x", "error": "x"}
    content = {"passed": False, "gates": {"smoke": smoke}, "layerErrors": "ZeroDivisionError: <y>"}
    page = html.render_gate_report("e", content)
    parsed(page)
    assert "could not be run: x" in page and "ZeroDivisionError: &lt;y&gt;" in page


@pytest.mark.parametrize(
    "gates", ["agreement perplexity smoke task context", "agreement smoke", "agreement", "task", ""]
)
def test_sections_stand_in_one_order(gates: str) -> None:
    content = told("x")
    rows = content["gates"]
    rows["context"] = dict(rows["task"])
    content["gates"] = {gate: rows[gate] for gate in gates.split()}
    page = html.render_gate_report("e", {**content, "layerErrors": [0.1, 0.2]})
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    order = {
        "Agreement by position": "agreement",
        "Perplexity over the reference&#x27;s": "perplexity",
        "Perplexity over the reference's": "perplexity",
        "Error by layer": None,
        "Continuations, side by side": "smoke",
        "Questions": "task",
        "Facts in long texts": "context",
        "Why these bounds": "",
    }
    places = [list(order).index(head) for head in heads]
    assert places == sorted(places) and heads.count("Error by layer") == 1
    assert {order[head] for head in heads} - {None, ""} == set(gates.split())


def test_the_same_evidence_gives_the_same_bytes() -> None:
    again = json.loads(json.dumps(told("x")))
    assert html.render_gate_report("e", told("x")) == html.render_gate_report("e", again)


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
        svg.render_line_chart("a", [(32.0 * i, s) for i, s in enumerate(shares)], "x", 0.9),
        svg.render_bar_chart("b", errors, "x"),
        svg.render_interval_chart("c", middle, (low, high), four[3]),
    ):
        root = ElementTree.fromstring(chart)
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for node in root.iter():
            for key, most in (("cx", width), ("x1", width), ("cy", height), ("y1", height), ("y", height)):
                assert -1 <= float(node.attrib.get(key, 0)) <= most + 1


def test_differences_are_marked() -> None:
    assert html.mark_differences("a big cat", "a bad cat") == "a b<mark>ig</mark> cat"
    assert "nothing" in html.mark_differences("", "x") and html.mark_differences("<b>", "<b>") == "&lt;b&gt;"


def test_gates_of_other_engines_have_their_sections() -> None:
    content = told("x")
    gates = content["gates"]
    gates["greedy"] = {**gates.pop("agreement"), "summary": "greedy"}
    gates["context"] = {
        **gates["task"],
        "interval": [0.25, 0.75],
        "score": 1,
        "questions": 2,
        "referenceScore": 2,
    }
    page = parsed(html.render_gate_report("e", content)).text
    assert "Greedy answers by position" in page and "Agreement by position" not in page
    assert "Facts in long texts1 of 2 right (95% interval 25% to 75%), the reference 2." in page
