"""enginix compare of artefacts: figures as measured, nothing invented, contradictions said."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_support import parsed, told
from safetensors.numpy import save_file

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.cli import main
from enginix.errors import EnginixError, UsageError
from enginix.manifest import Manifest
from enginix.report import artefacts, gate_figures, svg
from enginix.report.artefacts import Artefact
from enginix.report.comparison.artefact_comparison import compare_artefacts
from enginix.report.comparison.page import render_comparison_page
from enginix.report.comparison.text import render_comparison_text
from enginix.report.model_origin import ModelOrigin
from enginix.report.weight_sizes import measure_stored_weights

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "tests/models/tiny-qwen3"
PLAIN = {"repo": "acme/tiny", "revision": "0" * 40}


def enginix(*words: object) -> int:
    return main([*map(str, words)])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("checkpoints")
    convert_model(TINY, room / "plain", ConvertOptions())
    convert_model(TINY, room / "fp8", ConvertOptions(quantize="FP8_PER_CHANNEL_PER_TOKEN"))
    return {name: room / name for name in ("plain", "fp8")}


def evidence(
    ratio: float = 1.05, material: str = "a" * 64, model: Any = None, **gates: Any
) -> dict[str, Any]:
    return {
        "format": 1,
        "passed": True,
        "material": {"sha256": material},
        "reference": PLAIN if model is None else model,
        "gates": {
            "perplexity": {"passed": True, "found": 10.5, "reference": 10.0, "ratioFound": ratio,
                           "interval": [ratio - 0.01, ratio + 0.01]},
            "agreement": {"passed": True, "top1Found": 0.9, "klFound": 0.01},
            "task": {"passed": True, "score": 3, "referenceScore": 4, "questions": 5},
            **gates,
        },
    }  # fmt: skip


def engine(
    directory: Path, checkpoint: Path, content: dict[str, Any] | None, *, model: Any = None, name: str = "e"
) -> Path:
    """A stand-in for a gated reference engine."""
    directory.mkdir()
    (directory / "checkpoint").symlink_to(checkpoint)
    gates = {} if content is None else content["gates"]
    quantization = json.loads((checkpoint / "config.json").read_text())["quantization"]["quant_algo"]
    said = Manifest(
        "engine", name, "reference",
        model={"quantization": quantization},
        inputs={"model": PLAIN if model is None else model},
        results={"gates": {gate: "passed" for gate in gates} or "not gated"},
    )  # fmt: skip
    said.write(directory)
    if content is not None:
        (directory / "gates.json").write_text(json.dumps(content))
    return directory


def test_what_is_shown_is_what_was_measured(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    one = engine(tmp_path / "one", checkpoints["plain"], None, name="one")
    two = engine(tmp_path / "two", checkpoints["fp8"], evidence(), name="two")
    page = tmp_path / "compare.html"
    assert enginix("compare", one, two, checkpoints["fp8"], "-o", page, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {row["name"]: row for row in found["artefacts"]}
    assert by_name["one"]["measured"] is None and by_name["one"]["speed"] is None
    assert by_name["two"]["measured"]["ratio"] == 1.05 and by_name["two"]["measured"]["score"] == 3
    assert found["notes"] == []
    text = parsed(page.read_text()).text
    assert "not measured" in text and "× 1.05" in text and "3 of 5" in text and "90.0%" in text
    # The engine is a manifest, evidence, and what its link leads to.
    whole = sum(p.stat().st_size for p in (*two.iterdir(), *checkpoints["fp8"].iterdir()) if p.is_file())
    assert by_name["two"]["size"] == whole


def test_bits_are_those_of_the_format(checkpoints: dict[str, Path]) -> None:
    model, plain, fp8 = (measure_stored_weights(p) for p in (TINY, *checkpoints.values()))
    assert model is not None and plain is not None and fp8 is not None
    assert model.bits == plain.bits == model.matrix_bits == 16
    # A checkpoint of a model with tied embeddings holds them twice.
    assert plain.parameters == fp8.parameters == model.parameters + 2048 * 128
    assert fp8.matrix_bits is not None and 8 < fp8.matrix_bits < 8.5 < fp8.bits < 16


@pytest.mark.parametrize(
    "scales", [{"weights_block_scaling_factor": (8, 2)}, {"weights_scaling_factor": (8, 1)}]
)
def test_two_weights_of_a_byte_are_two(tmp_path: Path, scales: dict[str, tuple[int, int]]) -> None:
    module = "transformer.layers.0.mlp.fc"
    tensors = {f"{module}.weight": np.zeros((8, 16), np.uint8)}
    tensors |= {f"{module}.{name}": np.zeros(shape, np.uint8) for name, shape in scales.items()}
    tensors[f"{module}.weights_block_scaling_factor_interleaved"] = np.zeros(1000, np.uint8)
    save_file(tensors, tmp_path / "rank0.safetensors")
    found = measure_stored_weights(tmp_path)
    assert found is not None and found.parameters == 256 and 4 < found.bits < 5
    assert measure_stored_weights(tmp_path / "nowhere") is None


DAMAGE: dict[str, Any] = {
    "perplexity NaN": ("perplexity", "ratioFound", math.nan),
    "perplexity infinite": ("perplexity", "ratioFound", math.inf),
    "perplexity negative": ("perplexity", "ratioFound", -1.0),
    "perplexity below one": ("perplexity", "found", 0.5),
    "interval upside down": ("perplexity", "interval", [1.2, 1.0]),
    "interval elsewhere": ("perplexity", "interval", [2.0, 3.0]),
    "interval of one": ("perplexity", "interval", [1.0]),
    "agreement of 140%": ("agreement", "top1Found", 1.4),
    "agreement is text": ("agreement", "top1Found", "90%"),
    "KL negative": ("agreement", "klFound", -0.1),
    "more right than asked": ("task", "score", 9),
    "half an answer": ("task", "score", 2.5),
    "true": ("task", "questions", True),
    "larger than any float": ("perplexity", "ratioFound", 10**400),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_figures_that_cannot_be_are_said_and_not_shown(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    gate, key, value = DAMAGE[damage]
    content = evidence()
    content["gates"][gate][key] = value
    path = engine(tmp_path / "e", checkpoints["fp8"], content)
    assert enginix("compare", path, path, "-o", tmp_path / "c.html") == 1
    said = capsys.readouterr().out
    assert "doubt: " in said and "gates.json" in said and "nan" not in said.split("doubt:")[0].lower()
    page = parsed((tmp_path / "c.html").read_text()).text
    assert "Read this first" in page


LIES: dict[str, Any] = {
    "gates.json is gone": lambda e: (e / "gates.json").unlink(),
    "manifest passed, gate failed": lambda e: _edit(e, lambda g: g["gates"]["task"].update(passed=False)),
    "passed at the top": lambda e: _edit(e, lambda g: g["gates"]["task"].update(passed="yes")),
    "a gate that never ran": lambda e: _edit(e, lambda g: g["gates"].pop("task")),
    "another format": lambda e: _manifest(e, lambda m: m["model"].update(quantization="NVFP4")),
    "no weights": lambda e: (e / "checkpoint").unlink(),
    "no format": lambda e: _manifest(e, lambda m: m["model"].update(quantization=None)),
}


def _edit(path: Path, change: Any, name: str = "gates.json") -> None:
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))


def _manifest(path: Path, change: Any) -> None:
    _edit(path, change, "enginix.json")


@pytest.mark.parametrize("lie", LIES)
def test_an_artefact_that_contradicts_itself(tmp_path: Path, checkpoints: dict[str, Path], lie: str) -> None:
    path = engine(tmp_path / "e", checkpoints["fp8"], evidence())
    assert artefacts.read_artefact(path).doubts == ()
    LIES[lie](path)
    assert artefacts.read_artefact(path).doubts
    assert enginix("compare", path, TINY) == 1


def test_unquantized_weights_under_a_quantized_name(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    path = shutil.copytree(checkpoints["plain"], tmp_path / "c")
    _edit(path, lambda c: c["quantization"].update(quant_algo="FP8"), "config.json")
    _manifest(path, lambda m: m["model"].update(quantization="FP8"))
    assert artefacts.read_artefact(path).doubts == (
        "its format is FP8, but its matrices take 16.0 bits a weight",
    )
    path = shutil.copytree(checkpoints["fp8"], tmp_path / "d")
    _edit(path, lambda c: c["quantization"].update(quant_algo=None), "config.json")
    _manifest(path, lambda m: m["model"].update(quantization=None))
    assert "8." in artefacts.read_artefact(path).doubts[0]


def test_other_models_and_other_questions_are_said(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"repo": "acme/other", "revision": "1" * 40}
    a = engine(tmp_path / "a", checkpoints["plain"], evidence())
    b = engine(tmp_path / "b", checkpoints["plain"], evidence(model=other), model=other)
    c = engine(tmp_path / "c", checkpoints["plain"], evidence(material="b" * 64, model=other))
    assert enginix("compare", a, b, c) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert "These are of different models: acme/tiny at 000000000000" in notes[0]
    assert "asked different questions" in notes[1] and "aaaaaaaaaaaa" in notes[1]
    assert "was compared with acme/other at 111111111111, and was made from acme/tiny" in notes[2]


def test_what_is_not_told_is_no_difference(checkpoints: dict[str, Path]) -> None:
    """A directory without commit beside a locked one: the same configuration, or who knows."""
    read = [artefacts.read_artefact(p) for p in (TINY, *checkpoints.values())]
    assert compare_artefacts(read).notes == ()
    one, same, unknown, other = (
        ModelOrigin(*o) for o in (("a at 1", "c"), (None, "c"), ("a at 1", None), (None, "d"))
    )
    assert not one.differs(same) and not one.differs(unknown) and not same.differs(unknown)
    assert one.differs(other) and one.differs(ModelOrigin("a at 2", "c"))


def test_names_are_made_different(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    paths = [
        engine(tmp_path / n, checkpoints[c], None) for n, c in (("a", "plain"), ("b", "fp8"), ("c", "fp8"))
    ]
    names = [a.name for a in compare_artefacts([artefacts.read_artefact(p) for p in paths]).artefacts]
    assert len(set(names)) == 3 and names[1] == "e, FP8_PER_CHANNEL_PER_TOKEN"
    unknown = Artefact("e", "checkpoint", None, None, None, 10, None, None, None)
    assert [a.name for a in artefacts.label_artefacts([unknown, replace(unknown, format="FP8")])] == [
        "e, no format",
        "e, FP8",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "unreadable"),
        ("[]", "not a file of enginix gate"),
        ('{"gates": []}', "not a file of enginix gate"),
        ('{"gates": {"task": 1}}', "not a file of enginix gate"),
        ("[" * 100_000, "unreadable"),
    ],
)
def test_evidence_that_is_none(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    path = engine(tmp_path / "e", checkpoints["plain"], None)
    (path / "gates.json").write_text(content)
    assert enginix("compare", path, TINY) == 1
    assert said in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    path = engine(tmp_path / "e", checkpoints["plain"], None)
    os.mkfifo(path / "gates.json")
    assert enginix("compare", path, TINY) == 1
    (path / "enginix.json").unlink()
    os.mkfifo(path / "enginix.json")
    assert enginix("compare", path, TINY) == 3


def test_a_name_is_only_shown(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = engine(tmp_path / "e", checkpoints["plain"], None, name="<script>\x1b[31m\n" + "x" * 500)
    assert enginix("compare", path, TINY, "-o", tmp_path / "c.html") == 0
    out = capsys.readouterr().out
    assert "<script>?[31m?xxx" in out and "\x1b" not in out
    parsed((tmp_path / "c.html").read_text())
    for kind in (5, ["reference"], "other"):
        _manifest(path, lambda m, kind=kind: m.update(kind=kind))
        assert enginix("compare", path, TINY) == 3


def test_evidence_is_only_shown(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gates = {"\x1b[31m": {"passed": False}, "\ud800": {"passed": False}}
    content = evidence(material="\x1b[2J", **gates)
    content["gates"]["task"]["score"] = "\x1b[2J"
    path = engine(tmp_path / "e", checkpoints["plain"], evidence())
    (path / "gates.json").write_text(json.dumps(content))
    _manifest(path, lambda m: m["results"]["gates"].update({"\x1b[2J": "passed"}))
    other = engine(tmp_path / "o", checkpoints["plain"], evidence())
    assert enginix("compare", path, other, "-o", tmp_path / "c.html") == 1
    assert "\x1b" not in capsys.readouterr().out
    page = (tmp_path / "c.html").read_text()
    parsed(page)
    assert "\x1b" not in page and not list(tmp_path.glob(".*"))


def test_what_is_no_artefact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "calibration").mkdir()
    Manifest("calibration", "c").write(tmp_path / "calibration")
    lock = ROOT / "tests/models/tiny-qwen3.lock.json"
    for path, said in (
        (tmp_path / "nowhere", "no such directory"),
        (tmp_path / "empty", "no model, checkpoint or engine there"),
        (tmp_path / "calibration", "is a calibration"),
        (lock, "an artefact is a directory"),
    ):
        assert enginix("compare", TINY, path) == 3
        assert said in capsys.readouterr().err
    assert enginix("compare", TINY, TINY, "--target", "h200") == 2
    assert enginix("compare", TINY, TINY, "-o", tmp_path) == 2
    assert not [p for p in tmp_path.iterdir() if "html" in p.name]


def test_greedy_answers_stand_where_no_distributions_are(
    tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    content = evidence(greedy={"passed": True, "top1Found": 0.75})
    del content["gates"]["agreement"], content["gates"]["perplexity"]
    row = artefacts.read_artefact(engine(tmp_path / "e", checkpoints["plain"], content))
    text = render_comparison_text(compare_artefacts([row]))
    assert "greedy 75.0%" in text and text.count("not measured") == 4 and row.doubts == ()


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "same").symlink_to(tmp_path / "file")
    (tmp_path / "nothing").symlink_to(tmp_path / "nowhere")
    assert artefacts.measure_disk_size(tmp_path) == 100


def test_speeds_are_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speeds.json"
    path.write_text('{"on": "a stand-in", "tokensPerSecond": {"tiny-qwen3": 12.5}}')
    assert enginix("compare", TINY, "--speed", path) == 0
    out = capsys.readouterr().out
    assert "12.5" in out and "measured on a stand-in" in out
    path.write_text('{"on": "a stand-in", "tokensPerSecond": {"other": 12.5}}')
    assert enginix("compare", TINY, "--speed", path) == 2
    assert "the names are: 'tiny-qwen3'" in capsys.readouterr().err


numbers = st.one_of(
    st.floats(), st.integers(-5, 10**12), st.just(10**400), st.text(max_size=3), st.none(), st.booleans()
)
json_values = st.recursive(
    numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@settings(max_examples=150, deadline=None)
@given(json_values)
def test_no_file_of_speeds_is_believed_unread(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "speeds-fuzz.json"
    for content in (value, {"on": "x", "tokensPerSecond": value}, {"on": value, "tokensPerSecond": {"a": 1}}):
        path.write_text(json.dumps(content))
        try:
            found = gate_figures.read_speeds(path)
        except UsageError:
            continue
        assert found.on.strip() and all(math.isfinite(r) and r > 0 for r in found.rates.values())


gate_values = st.dictionaries(
    st.sampled_from(
        ["passed", "ratioFound", "interval", "found", "top1Found", "klFound", "score", "questions"]
    ),
    json_values,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["perplexity", "agreement", "task", "smoke"]), gate_values),
    st.fixed_dictionaries(
        {}, optional={"passed": json_values, "material": json_values, "reference": json_values}
    ),
)
def test_any_evidence_gives_a_page(gates: dict[str, Any], top: dict[str, Any]) -> None:
    found = gate_figures.parse_gate_figures(json.loads(json.dumps({**top, "gates": gates})))
    for value in (found.ratio, found.low, found.high, found.perplexity, found.same, found.kl):
        assert value is None or math.isfinite(value)
    assert found.verdict == "not gated" or (found.verdict == "passed") == (not found.failed)
    row = Artefact("<a>", "engine", None, None, None, 10, None, None, found, doubts=found.doubts)
    both = compare_artefacts([row, row])
    parsed(render_comparison_page(both))
    json.loads(json.dumps(both.as_json(), allow_nan=False))
    assert "<a> #2" in render_comparison_text(both)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e12), st.floats(1e-6, 1e9), st.text(max_size=40)), min_size=1, max_size=30
    )
)
def test_the_plot_is_inside_its_frame(rows: list[tuple[float, float, str]]) -> None:
    from xml.etree import ElementTree

    clean = [(x, y, "".join(c for c in t if c.isprintable())) for x, y, t in rows]
    points = [svg.ScatterPoint(t, x, y, y * 0.9, y * 1.1) for x, y, t in clean]
    root = ElementTree.fromstring(svg.render_scatter_chart("t", points, "x", "y"))
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for node in root.iter():
        for key, most in (
            ("cx", width),
            ("x1", width),
            ("x2", width),
            ("cy", height),
            ("y1", height),
            ("y", height),
        ):
            assert -1 <= float(node.attrib.get(key, 0)) <= most + 1


def test_gates_of_a_report_are_figures_of_a_comparison() -> None:
    """The page of one engine and this one read the same content."""
    found = gate_figures.parse_gate_figures(told())
    assert (found.ratio, found.low, found.high) == (1.01, 0.99, 1.03) and found.verdict == "passed"


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_weights_are_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("garbage")
    shutil.copy(TINY / "config.json", path)
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(EnginixError):
        artefacts.read_artefact(path)
