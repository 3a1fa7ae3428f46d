"""What changed upstream in 2026, as a survey of November found it: each correction of a fact stays mended.

The judge is the tables and the code that users meet, not the prose alone: where a fact is a text, the false
one is looked for everywhere.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from enginix.checkpoint import external_converters
from enginix.checkpoint.convert import ConvertOptions
from enginix.errors import HubError, MachineError, UsageError
from enginix.hub import session
from enginix.hub.hub_errors import translate_hub_error
from enginix.kinds.tensorrt.build import options
from enginix.tables import load_table

ROOT = Path(__file__).resolve().parents[3]
KINDS = (ROOT / "docs/explanation/kinds.md").read_text()
EDGELLM = (ROOT / "docs/reference/edgellm.md").read_text()


KINDS_PAGE, EDGELLM_PAGE = "docs/explanation/kinds.md", "docs/reference/edgellm.md"
LATER = ("1.3.0rc27", "1.3.0rc28", "1.3.0rc29", "1.4.0rc0", "1.4.0rc1")
IMAGE_2607 = ("runtimes", "trtllm-1.2.1", "images", "26.07", "hashes")
# The survey's sixteen corrections: for each where users meet what is so, as a pattern of a file's text or as
# the value of a table's field.
CORRECTIONS: dict[int, tuple[tuple[Any, ...], ...]] = {
    1: (
        (KINDS_PAGE, r"1\.2\.1 is the last stable release that has it,\s+and 1\.3\.0rc20"),
        ("kinds", ("kinds", "tensorrt", "future"), r"1\.2\.1 is the last stable .* 1\.3\.0rc20 the last"),
        ("runtimes", ("runtimes", "trtllm-1.3.0rc20", "enginePath"), "^True$"),
    ),
    2: (
        *(("runtimes", ("runtimes", f"trtllm-{v}", "transformers"), r"^==5\.5\.4$") for v in LATER),
        *(("runtimes", ("runtimes", f"trtllm-{v}", "sources", "torch"), "^package$") for v in LATER),
        ("runtimes", ("runtimes", "trtllm-1.3.0rc29", "torch"), r">=2\.14\.0a0,<=2\.14\.0"),
        ("runtimes", ("runtimes", "trtllm-1.3.0rc29", "nccl"), r"==2\.30\.7"),
        ("runtimes", ("runtimes", "trtllm-1.4.0rc1", "nccl"), r">=2\.30\.7,<=2\.31\.2"),
    ),
    3: (
        ("runtimes", ("runtimes", "trtllm-1.3.0rc26", "source"), r"AutoDeploy is deprecated .* 1\.3\.0rc21"),
        (KINDS_PAGE, r"AutoDeploy\*\*.* is deprecated since 1\.3\.0rc21"),
    ),
    4: tuple(
        ("runtimes", ("runtimes", f"trtllm-{v}", "source"), r"BuildConfig is gone since 1\.3\.0rc21")
        for v in ("1.3.0rc26", *LATER)
    ),
    5: (
        ("llm_args", ("read",), r"\['trtllm-1\.1\.0', 'trtllm-1\.2\.1'\]"),
        ("docs/reference/runtimes.md", r"`trtllm-1\.3\.0rc26` \| llmapi .* not read"),
    ),
    6: (
        (EDGELLM_PAGE, r"0\.11\.1, 2026-10-28 \| 0\.12\.0, 2026-11-13"),
        (EDGELLM_PAGE, "`trtedge`"),
        ("kinds", ("kinds", "edgellm", "future"), r"0\.12\.0, November 2026, and 0\.11\.0 pinned"),
    ),
    7: ((KINDS_PAGE, r"SM 89 is built, and SM 90 is not: NVIDIA left its attention kernels out"),),
    8: (
        (KINDS_PAGE, r"itself is at 11\.4 or later"),
        (KINDS_PAGE, r"layers of its own for attention, KV cache\s+updates, rotary embedding and experts"),
        (KINDS_PAGE, "version-compatible engines of 10"),
        ("runtimes", ("runtimes", "edgellm-0.11.0", "tensorrts"), r"10\.16\.0\.72.*11\.0\.0\.114"),
    ),
    9: tuple(
        ("gpus", ("gpus",), pattern) for pattern in ("'sm': 107", "'sm': 110", "'sm': 87.*?'memoryGB': [1-9]")
    ),
    10: ((KINDS_PAGE, r"Triton's images 25\.12 to 26\.02 and 26\.03 to\s+26\.07, do not change"),),
    11: (
        (KINDS_PAGE, r"`export_tensorrt_llm_checkpoint` in 0\.48 and removes it in 0\.49"),
        (KINDS_PAGE, "living writer of the format"),
        ("tests/matrix/matrix.py", r"nvidia-modelopt>=0\.48"),
    ),
    12: (
        ("python/pyproject.toml", r"huggingface_hub>=1\.30,<3"),
        ("tests/matrix/matrix.py", "huggingface_hub<3"),
        ("python/enginix/hub/session.py", "httpx2"),
    ),
    13: ((KINDS_PAGE, r"TensorRT 10\.14\.1\.48, and neither TensorRT-LLM nor Triton.*?refuses Xet"),),
    14: (
        ("runtimes", (*IMAGE_2607, "x86_64-linux", "hash"), "^None$"),
        ("runtimes", IMAGE_2607, "No hash of its tree is known"),
    ),
    15: ((KINDS_PAGE, r"Dynamo 1\.6\.1 .*?\*\*AITune\*\* 0\.6\.0"),),
    16: (
        ("build_options", ("removed", "pagedKvCache", "since"), r"^1\.1\.0$"),
        ("build_options", ("removed", "pagedKvCache", "deprecated"), "^True$"),
    ),
}


@pytest.mark.parametrize("number", range(1, 17))
def test_every_correction_is_shown_mended(number: int) -> None:
    for place, *path, pattern in CORRECTIONS[number]:
        if path:
            value: Any = load_table(place)
            for key in path[0]:
                value = value[key]
            text = str(value)
        else:
            text = (ROOT / place).read_text()
        assert re.search(pattern, text, re.DOTALL), (number, place, path, pattern)


def list_texts() -> dict[str, str]:
    listed = subprocess.run(
        ["git", "ls-files", "README.md", "docs", "python/enginix/data", "nix"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = [n for n in listed.stdout.splitlines() if n.endswith((".md", ".json", ".nix"))]
    return {n: (ROOT / n).read_text() for n in names if (ROOT / n).is_file()}


@pytest.mark.parametrize(
    "false",
    [
        r"1\.1\.0 and\s+1\.2\.1,? (are |)the last",  # 1.3.0rc20 is the last candidate
        r"[Tt]he last releases that have it are 1\.1\.0",
        r"alive: 0\.11\.0",  # 0.12.0 is out
        r"yes: 0\.11\.0, September",
        r"gone since TensorRT-LLM deprecated",
        r"since\": \"deprecated",
    ],
)
def test_false_sentences_are_nowhere(false: str) -> None:
    assert [name for name, text in list_texts().items() if re.search(false, text)] == []


def test_the_last_release_with_the_engine_path_is_named() -> None:
    assert "1.3.0rc20" in load_table("kinds")["kinds"]["tensorrt"]["future"]
    assert "last stable release" in KINDS and "1.3.0rc20" in KINDS


def test_llmapi_runtimes_without_read_text_say_so() -> None:
    """No text of the arguments of a runtime after 1.2 was read, and no row claims one."""
    rows = load_table("runtimes")["runtimes"]
    later = [n for n, row in rows.items() if row["kinds"] == ["llmapi"]]
    for name in (*later, "trtllm-1.3.0rc20"):
        assert name not in load_table("llm_args")["read"] + load_table("build_options")["read"]
        assert name not in json.dumps(load_table("llm_args")["arguments"])
    for name in later:
        assert "1.3.0rc21" in rows[name]["source"] and "BuildConfig is gone" in rows[name]["source"]


def test_edgellms_releases_are_told() -> None:
    assert load_table("edgellm")["version"] == "0.11.0"
    assert "0.12.0" in load_table("kinds")["kinds"]["edgellm"]["future"]
    for word in ("0.11.1", "0.12.0", "trtedge", "GPTQ", "could be fetched"):
        assert word in EDGELLM, word
    assert "SM 90 is not" in KINDS
    assert 90 not in {row["sm"] for row in load_table("edgellm")["payloads"]}


def test_tensorrts_newer_layers_and_parts_are_told() -> None:
    assert "11.4" in KINDS and "SM 107" in KINDS
    assert {row["sm"] for row in load_table("gpus")["gpus"].values()} >= {87, 107, 110}


def test_no_image_with_the_engine_path_is_newer_than_26_07() -> None:
    rows = load_table("runtimes")["runtimes"]
    images = [image for row in rows.values() if row["enginePath"] for image in row["tritonImages"]]
    assert max(images) == "26.07"


def test_other_products_are_told() -> None:
    for name in (
        "AutoDeploy",
        "TensorRT-Model-Connect",
        "Dynamo",
        "AITune",
        "export_tensorrt_llm_checkpoint",
    ):
        assert name in KINDS, name


def test_a_deprecated_option_is_not_called_gone() -> None:
    with pytest.raises(UsageError, match=r"--paged_kv_cache is deprecated since TensorRT-LLM 1\.1\.0"):
        options.check_build_options({"pagedKvCache": True}, "trtllm-1.2.1")
    for row in load_table("build_options")["removed"].values():
        assert re.match(r"(before |the |)\d+\.\d+", row["since"]), row


def test_modelopt_without_the_export_is_told_apart_from_no_modelopt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ModelOpt 0.49 will be: a stand-in of its modules, without the function."""
    monkeypatch.setattr(external_converters, "open_weights", lambda model: None)
    monkeypatch.setattr(external_converters, "_refuse_unsupported_options", lambda *a: None)
    for name in ("modelopt", "modelopt.torch", "modelopt.torch.export"):
        module = types.ModuleType(name)
        module.__version__ = "0.49.0"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["modelopt"].torch = sys.modules["modelopt.torch"]  # type: ignore[attr-defined]
    sys.modules["modelopt.torch"].export = sys.modules["modelopt.torch.export"]  # type: ignore[attr-defined]
    model = tmp_path / "model"
    model.mkdir()
    architecture = next(iter(load_table("converters")["converters"]["modelopt"]["architectures"]))
    (model / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with pytest.raises(MachineError, match=r"ModelOpt 0\.49\.0 writes no checkpoint") as caught:
        external_converters.convert_with_modelopt(model, tmp_path / "out", ConvertOptions())
    assert "--converter enginix" in str(caught.value) and "not installed" not in str(caught.value)


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_both_http_clients_of_the_hub_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub 2 has httpx2, whose classes have httpx's names; a stand-in has the same ones."""
    made: Any = types.ModuleType(name)
    made.HTTPError = type("HTTPError", (Exception,), {})
    made.TimeoutException = type("TimeoutException", (made.HTTPError,), {})
    made.ConnectError = type("ConnectError", (made.HTTPError,), {})
    monkeypatch.setitem(sys.modules, name, made)
    refused = translate_hub_error(made.ConnectError("Connection refused"), "acme/tiny")
    assert isinstance(refused, HubError) and "cannot reach" in refused.what
    assert "stopped answering" in translate_hub_error(made.TimeoutException(), "acme/tiny").what


@pytest.mark.parametrize(("version", "name"), [("1.26.0", "httpx"), ("2.4.0", "httpx2"), ("3.0.0", "httpx2")])
def test_the_client_is_the_hub_librarys(version: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.__version__", version)
    monkeypatch.setitem(sys.modules, "httpx2", types.ModuleType("httpx2"))
    assert session.import_http_client().__name__ == name
    bound = re.search(r"huggingface_hub>=1\.\d+,<(\d)", (ROOT / "python/pyproject.toml").read_text())
    assert bound is not None and bound[1] == "3"
