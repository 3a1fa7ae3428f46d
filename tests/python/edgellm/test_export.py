"""NVIDIA's real exporter: what it writes is the model, twice the same; what is broken leaves nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .conftest import FORMATS, HERE, TINY, Run, start_warm_python

pytestmark = pytest.mark.slow
LAYERS = 4


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize("name", ["bf16", *FORMATS])
def test_every_weight_of_every_format_is_accounted_for(
    name: str, models: Callable[[str], Path], exports: Callable[[str], Path]
) -> None:
    made = json.loads((exports(name) / "enginix.json").read_text())
    with safe_open(models(name) / "model.safetensors", "np") as f:
        tensors = len(list(f.keys()))
    assert made["results"]["weights"]["tensors"] == tensors
    assert made["results"]["attentionPlugins"] == LAYERS
    assert bool(made["results"]["quantizationNodes"]) == (name != "bf16")
    assert made["artefact"] == "export" and made["kind"] == "edgellm"


@pytest.fixture(scope="module")
def other_python(edge: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Another process than the one that made the exports: its addresses differ."""
    with start_warm_python(edge, tmp_path_factory.mktemp("other-python")) as run:
        yield run


@pytest.mark.parametrize("name", ["bf16", *FORMATS])
def test_twice_gives_the_same_bytes(
    name: str,
    models: Callable[[str], Path],
    exports: Callable[[str], Path],
    other_python: Run,
    tmp_path: Path,
) -> None:
    # Another place, another current directory: neither may show.
    again = tmp_path / "somewhere" / "else"
    model = shutil.copytree(models(name), tmp_path / "copy")
    done = other_python("-m", "enginix", "edgellm-export", model, "-o", again, "--name", "n")
    assert done.returncode == 0, done.stderr
    first, second = content(exports(name)), content(again)
    manifests = [json.loads(files.pop("enginix.json")) for files in (first, second)]
    assert manifests[0]["results"] == manifests[1]["results"]
    assert first == second


def test_nothing_in_it_names_where_it_was_made(exports: Callable[[str], Path], edge: Path) -> None:
    for name, data in content(exports("bf16")).items():
        for trace in (str(edge.parent.parent), str(TINY), str(exports("bf16").parent)):
            assert trace.encode() not in data, (name, trace)


@pytest.mark.parametrize(
    "flags",
    [["--fp8-embedding"], ["--target-sm", "120"]],
    ids=["fp8-embedding", "target-sm"],
)
def test_options_reach_the_exporter(flags: list[str], run_export: Run, tmp_path: Path) -> None:
    done = run_export(TINY, "-o", tmp_path / "e", *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "e/enginix.json").read_text())["options"]


def test_an_nvfp4_graph_is_the_same_for_thor(
    models: Callable[[str], Path], exports: Callable[[str], Path], run_export: Run, tmp_path: Path
) -> None:
    """The exporter's target changes W4A16_NVFP4 alone, which enginix does not support: one export for all."""
    done = run_export(models("nvfp4"), "-o", tmp_path / "e", "--target-sm", "110")
    assert done.returncode == 0, done.stderr
    first, second = content(exports("nvfp4")), content(tmp_path / "e")
    del first["enginix.json"], second["enginix.json"]  # they differ in the option
    assert first == second


def test_the_older_int4_layout_is_understood_too(
    models: Callable[[str], Path], run_export: Run, tmp_path: Path
) -> None:
    done = run_export(models("int4_awq"), "-o", tmp_path / "e", "--int4-gemm-plugin-version", "1")
    assert done.returncode == 0, done.stderr
    nodes = json.loads((tmp_path / "e/enginix.json").read_text())["results"]["quantizationNodes"]
    assert "Int4GroupwiseGemmPlugin" in nodes


def refused(run_export: Run, model: Path, *says: str) -> None:
    out = model.parent / "export"
    done = run_export(model, "-o", out)
    assert done.returncode in (1, 3, 5), done.stdout + done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    for word in says:
        assert word in done.stderr, done.stderr
    assert not out.exists() and not list(out.parent.glob(".export.*"))


def test_truncated_weights(run_export: Run, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    refused(run_export, model, "truncated", "model.safetensors")


def test_missing_chat_template(run_export: Run, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    refused(run_export, model, "no chat template", "chat_template.jinja")


def test_unsupported_architecture(run_export: Run, model: Path) -> None:
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("Qwen3ForCausalLM", "MambaForCausalLM"))
    refused(run_export, model, "MambaForCausalLM", "Qwen3ForCausalLM")


def test_a_missing_tensor_that_the_exporter_does_not_mind(
    run_export: Run, warm_python: Run, model: Path, edge: Path, tmp_path: Path
) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    refused(run_export, model, "model.layers.2.mlp.up_proj.weight is missing")
    # It is the exporter that does not mind: its status is 0, and only the check on the result tells.
    exporter = edge.parent / "tensorrt-edgellm-export"
    done = warm_python(exporter, model, tmp_path / "raw", HOME=str(tmp_path))
    assert done.returncode == 0
    checked = warm_python(HERE / "check_export.py", tmp_path / "raw", TINY)
    assert checked.returncode == 1 and "model.layers.2.mlp.up_proj.weight" in checked.stderr


def test_weights_beyond_float16(run_export: Run, model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = 1e6
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    refused(run_export, model, "float16", "model.layers.1.mlp.down_proj.weight")


def test_a_disk_that_is_full_at_once_or_midway(run_export: Run, model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    # 3.5 MB pass the estimate, and the export of the tiny model does not fit; 1 MB does not pass.
    for size in ("1m", "3500k"):
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", small], check=False)
        if mounted.returncode != 0:
            pytest.skip("mounting needs root")
        try:
            done = run_export(model, "-o", small / "export")
            left = list(small.iterdir())
        finally:
            subprocess.run(["umount", small], check=True)
        assert done.returncode == 5 and "the disk is full" in done.stderr, done.stderr
        assert left == []


def lying_exporter(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/bash\nout=${{@: -1}}\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("exit 0", "wrote no graph"),
        ("mkdir $out/llm; head -c 99 /dev/zero >$out/llm/model.onnx", "not an ONNX file"),
        ("echo 'ValueError: something of its own'; exit 1", "something of its own"),
        ("kill -9 $$", "memory"),
        ("cp -r $GOOD/llm $out/; : >$out/llm/chat_template.jinja", "chat_template.jinja is missing or empty"),
        ("cp -r $GOOD/llm $out/; truncate -s -9 $out/llm/model.onnx.data", "truncated"),
        ("cp -r $GOOD/llm $out/; sed -i 's/key_value_heads.: 4/key_value_heads\": 2/' $out/llm/config.json",
         "num_key_value_heads"),
        ("cp -r $GOOD/llm $out/; echo >>$out/llm/tokenizer.json", "tokenizer.json is not the model's"),
        ("cp -r $GOOD/llm $out/; ln -s /etc/passwd $out/link", "left a link"),
        ("cp -r $GOOD/llm $out/; echo >>$out/llm/tokenizer_config.json",
         "tokenizer_config.json is not the model's"),
        ("cp -r $GOOD/llm $out/; echo '{}' >$out/llm/special_tokens_map.json",
         "special_tokens_map.json is not the model's"),
        ("cp -r $GOOD/llm $out/; sed -i 's/\"rms_norm_eps.: 1e-06/\"rms_norm_eps\": 0.5/'"
         " $out/llm/config.json",
         "of the export: llm/config.json: rms_norm_eps is 0.5"),
        ("cp -r $GOOD/llm $out/; sed -i 's/\"model.: .qwen3./\"model\": \"llama\"/' $out/llm/config.json",
         "model is"),
        ("cp -r $GOOD/llm $out/; echo phi4mm >$out/llm/chat_template.processor",
         "chat_template.processor is no file"),
    ],
)  # fmt: skip
def test_an_exporter_that_lies(
    body: str, says: str, run_export: Run, exports: Callable[[str], Path], tmp_path: Path
) -> None:
    program = lying_exporter(tmp_path / "exporter", body.replace("$GOOD", str(exports("bf16"))))
    done = run_export(TINY, "-o", tmp_path / "e", "--exporter", program)
    assert done.returncode in (1, 5) and says in done.stderr, done.stderr
    assert not (tmp_path / "e").exists() and not list(tmp_path.glob(".e.*"))


@pytest.mark.parametrize("seed", range(6))
def test_any_changed_value_is_seen(
    seed: int,
    exports: Callable[[str], Path],
    models: Callable[[str], Path],
    warm_python: Run,
    tmp_path: Path,
) -> None:
    """A bit of the weights flipped, in any format: some check names it."""
    name = ["bf16", *FORMATS][seed % 5]
    damaged = Path(shutil.copytree(exports(name), tmp_path / "e"))
    data = bytearray((damaged / "llm/model.onnx.data").read_bytes())
    # Among the matrices, which lie in front; what follows are shapes and constants of the graph.
    at = int(np.random.default_rng(seed).integers(0, len(data) // 2))
    data[at] ^= 0x11
    (damaged / "llm/model.onnx.data").write_bytes(data)
    done = warm_python(HERE / "check_export.py", damaged, models(name))
    assert done.returncode == 1 and "weight" in done.stderr, done.stdout + done.stderr


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the graph that models share which differ by end tokens alone."""
    return tmp_path_factory.mktemp("graphs")


@pytest.mark.parametrize(
    ("generation", "config", "ends", "note"),
    [
        ([7], 2, [2, 7], "also ends answers at 2"),
        ([2, 0], 2, [2, 0], ""),
        (None, [2, 5], [2, 5], ""),
    ],
)
def test_end_tokens_are_those_that_the_engine_stops_at(
    generation: list[int] | None,
    config: object,
    ends: list[int],
    note: str,
    run_export: Run,
    graphs: Path,
    model: Path,
) -> None:
    """The exporter joins both files, where transformers reads the first that has one."""
    raw = json.loads((model / "config.json").read_text()) | {"eos_token_id": config}
    (model / "config.json").write_text(json.dumps(raw))
    text = json.dumps({} if generation is None else {"eos_token_id": generation})
    (model / "generation_config.json").write_text(text)
    done = run_export(model, "-o", model.parent / "e", ENGINIX_TEST_GRAPHS=str(graphs))
    assert done.returncode == 0, done.stderr
    assert json.loads((model.parent / "e/enginix.json").read_text())["model"]["endTokens"] == ends
    assert json.loads((model.parent / "e/llm/config.json").read_text())["eos_token_id"] == ends
    assert note in done.stderr and ("ends answers" in done.stderr) == bool(note)
