"""tests/facts: tables against the record of published metadata, and answers of pip that are broken."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "facts"))

import published  # noqa: E402

import facts  # noqa: E402
from enginix.errors import EnginixError, HubError  # noqa: E402
from enginix.tables import load_table  # noqa: E402

RECORD = json.loads(facts.RECORD.read_text("utf-8"))
REPORT = {
    "install": [{"metadata": {"name": "Some_Package", "version": "1.0rc1", "requires_dist": ["torch<=2"]}}]
}


def test_no_table_contradicts_the_record() -> None:
    """Run `make facts` for today's registry; the record is what it wrote last."""
    assert [finding.line() for finding in facts.compare_tables(RECORD) if finding.contradicts] == []
    assert set(RECORD["requires"]) == {" ".join(row) for row in facts.list_recorded_versions()}
    assert set(facts.WATCHED) <= set(RECORD["newest"])


def test_the_newest_releases_have_rows_and_are_told() -> None:
    rows = load_table("runtimes")["runtimes"].values()
    for package, key in (("tensorrt-llm", "tensorrtLlm"), ("tensorrt-edgellm", "edgellm")):
        assert set(RECORD["newest"][package].values()) <= {row.get(key) for row in rows}, package
    newest = ".".join(RECORD["newest"]["tensorrt"]["stable"].split(".")[:2])
    assert f"itself is at {newest}" in (ROOT / "docs/explanation/kinds.md").read_text()


@pytest.mark.parametrize(
    ("runtime", "field", "value", "said"),
    [
        ("trtllm-1.3.0rc28", "torch", ">=2.14.0", "torch: >=2.14.0, published <=2.14.0a0,>=2.13.0"),
        ("trtllm-1.4.0rc0", "nccl", None, "null, published nvidia-nccl-cu13==2.30.7"),
        ("trtllm-1.4.0rc1", "modelopt", "~=0.37.0", "modelopt"),
        ("trtllm-1.3.0rc26", "enginePath", True, "published no tensorrt"),
        ("trtllm-1.2.1", "tensorrt", "10.13.3.9", "published ~=10.14.1"),
        ("edgellm-0.11.0", "transformers", "==5.14.0", "published ==5.14.1"),
    ],
)
def test_a_wrong_field_is_found(
    runtime: str, field: str, value: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = copy.deepcopy(load_table("runtimes"))
    row = table["runtimes"][runtime]
    row[field] = value
    row["sources"].setdefault(field, "package")
    monkeypatch.setattr(facts, "load_table", lambda name: table)
    found = [finding.line() for finding in facts.compare_tables(RECORD) if finding.contradicts]
    assert len(found) == 1 and said in found[0] and f"{runtime}." in found[0] and "Requires-Dist" in found[0]


def test_newer_releases_and_bounds_are_told() -> None:
    newest = {**RECORD["newest"], "tensorrt-llm": {"stable": "1.5.0", "any": "1.6.0rc0"}}
    newest |= {
        "huggingface-hub": {"stable": "3.0", "any": "3.0"},
        "safetensors": {"stable": None, "any": "9"},
    }
    lines = [finding.line() for finding in facts.compare_tables({**RECORD, "newest": newest})]
    assert sum("tensorrt-llm: newest row 1.4.0rc1, pip finds 1." in line for line in lines) == 2
    assert any("huggingface-hub: <3,>=1.30 excludes 3.0" in line for line in lines)
    assert any("core.in huggingface-hub: pinned" in line and "pip finds 3.0" in line for line in lines)
    assert not any("safetensors" in line for line in lines)


def test_lower_bounds_are_what_the_matrix_runs() -> None:
    """Each is a row of `make matrix`, and transformers takes the hub library that is its neighbour there."""
    matrix = (ROOT / "tests/matrix/matrix.py").read_text()
    bounds = {name: specifier for name, groups in facts.read_bounds().items() for _, specifier in groups}
    assert "huggingface_hub==1.30.0" in matrix and "1.30.0" in bounds["huggingface-hub"]
    assert "1.29.9" not in bounds["huggingface-hub"]
    assert "transformers==5.0.0" in matrix and "5.0.0" in bounds["transformers"]
    assert "4.57.6" not in bounds["transformers"]  # it needs huggingface_hub below 1


def make_pip(folder: Path, body: str) -> tuple[str, ...]:
    """Return the words of a pip that says something; a stand-in."""
    script = folder / "pip.py"
    script.write_text(f"import json, sys, pathlib\nwords = sys.argv[1:]\n{body}\n")
    return (sys.executable, str(script))


def report(content: Any) -> str:
    return f"pathlib.Path(words[words.index('--report') + 1]).write_text({json.dumps(content)!r})"


def test_metadata_is_read_as_pip_reports_it(tmp_path: Path) -> None:
    package = published.read_package("some-package", "1.0rc1", make_pip(tmp_path, report(REPORT)))
    assert package == published.PublishedPackage("some-package", "1.0rc1", ("torch<=2",))
    pip = make_pip(tmp_path, "print('some-package (1.0)\\nAvailable versions: 1.0, 0.9rc1, 0.10')")
    assert published.list_versions("some-package", pip) == ["1.0", "0.10", "0.9rc1"]


OFFLINE = (
    "sys.exit('ERROR: Could not find a version x==1.0 (from versions: 1, 2) at https://index.example/simple')"
)
METADATA = REPORT["install"][0]["metadata"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (OFFLINE, "pip found nothing: Could not find a version x==1.0 at the registry"),
        ("sys.exit('No module named pip')", "there is no pip"),
        ("sys.exit(1)", "no reason given"),
        ("pass", "cannot be read"),
        (report([]), "cannot be read"),
        (report({"install": []}), "cannot be read"),
        (report({"install": [{"metadata": {**METADATA, "version": "new"}}]}), "cannot be read"),
        (
            report({"install": [{"metadata": {**METADATA, "version": "1.1"}}]}),
            "the metadata is of some-package 1.1",
        ),
        (report({"install": [{"metadata": {**METADATA, "name": "other"}}]}), "the metadata is of other"),
    ],
)
def test_broken_answers_are_errors_without_an_address(body: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(EnginixError) as caught:
        published.read_package("some-package", "1.0rc1", make_pip(tmp_path, body))
    assert said in str(caught.value) and "://" not in str(caught.value)


@pytest.mark.parametrize("answer", ["", "Available versions: ", "Available versions: 1.0, newest"])
def test_versions_that_are_none(answer: str, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="some-package"):
        published.list_versions("some-package", make_pip(tmp_path, f"print({answer!r})"))


def test_what_cannot_be_read_is_told_and_nothing_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network each package says so; the record stays as it was."""
    pip, before = make_pip(tmp_path, OFFLINE), facts.RECORD.read_bytes()
    for name in ("list_versions", "read_package"):
        function = getattr(published, name)
        monkeypatch.setattr(published, name, lambda *words, f=function: f(*words, pip=pip))
    monkeypatch.setattr(facts, "read_pins", dict)
    monkeypatch.setattr(facts, "read_bounds", dict)
    monkeypatch.setattr(facts, "list_recorded_versions", lambda: [("tensorrt-llm", "1.2.1")])
    monkeypatch.setattr(sys, "argv", ["facts.py", "--record"])
    assert facts.main() == HubError.exit_code
    said = capsys.readouterr()
    assert said.out.count("not read     ") == len(facts.WATCHED) + 1 and "0 contradict" in said.out
    assert facts.SCOPE in said.out
    assert "not written" in said.err and facts.RECORD.read_bytes() == before


def test_the_backend_for_source_packages_copies_pkg_info(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wheel_stub import buildapi

    text = "Metadata-Version: 2.1\nName: tensorrt-llm\nVersion: 1.4.0rc1\nRequires-Dist: torch\n"
    (tmp_path / "PKG-INFO").write_text(text)
    monkeypatch.chdir(tmp_path)
    made = tmp_path / buildapi.prepare_metadata_for_build_wheel(str(tmp_path))
    assert made.name == "tensorrt_llm-1.4.0rc1.dist-info" and (made / "METADATA").read_text() == text
    with pytest.raises(RuntimeError, match="nothing is built"):
        buildapi.build_wheel(".")
