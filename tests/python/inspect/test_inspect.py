"""``enginix inspect``: what it tells, and how little it fetches to tell it."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginix.cli import main
from enginix.errors import HashMismatch, ModelError, UsageError
from enginix.hub.lock import Lock, LockedFile
from enginix.inspect import describe_model, open_model
from enginix.inspect.roles import find_role

TINY = Path(__file__).parents[2] / "models" / "tiny-qwen3"


def told(what: str | Path, revision: str | None = None) -> Any:
    with open_model(str(what), revision) as model:
        return describe_model(model)


@functools.cache
def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lock_of(directory: Path, path: Path, revision: str) -> Path:
    files = tuple(LockedFile(p.name, p.stat().st_size, hash_file(p)) for p in sorted(directory.iterdir()))
    path.write_text(Lock("own/model", revision, "mit", False, {}, files).dump())
    return path


def test_parameters_are_those_that_transformers_counts() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY)
    assert told(TINY).count.parameters == sum(p.numel() for p in model.parameters())


def test_a_directory_tells_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(TINY)]) == 0
    text = capsys.readouterr().out
    for fact in (
        "Qwen3ForCausalLM", "8, 4 KV heads, of size 32", "2,048 tokens", "chat_template.jinja",
        "apache-2.0", "2,048, tied", "bfloat16", "model's dtype",
    ):  # fmt: skip
        assert fact in text
    assert main(["inspect", str(TINY), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layers"] == 4 and found["kvHeads"] == 4 and found["quantization"] is None
    assert found["files"]["weights"] == ["model.safetensors"]
    assert found["fetched"] == 0


def test_a_repository_tells_the_same_from_kilobytes(start: Callable[..., Any], sharded: Path) -> None:
    hub = start(sharded)
    here, there = told(sharded), told("own/model")
    assert there.count == here.count and there.count.parameters == 4 * 100 * 1000 * 250
    same = (
        "layers",
        "heads",
        "kv_heads",
        "head_size",
        "vocabulary",
        "context",
        "dtype",
        "license",
        "architecture",
    )
    assert [getattr(there, k) for k in same] == [getattr(here, k) for k in same]
    sent = sum(r["sent"] for r in hub.requests)
    weights = sum(p.stat().st_size for p in sharded.glob("*.safetensors"))
    assert weights > 199_000_000
    # Headers are 4 × 64 KiB at most; the listing and the small files are the rest.
    assert there.fetched <= sent < weights // 100
    assert not any(
        r["path"].endswith(".safetensors") and not r["range"] for r in hub.requests if r["status"] != 302
    )


def test_a_header_longer_than_the_first_request(start: Callable[..., Any], tmp_path: Path) -> None:
    from sparse_models import CONFIG, write_sparse

    directory = tmp_path / "long"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    names = {f"model.layers.{n}.some.rather.long.name.weight": ("F32", [4], 16) for n in range(3000)}
    write_sparse(directory / "model.safetensors", names)
    start(directory)
    assert told("own/model").count.tensors == 3000


def test_a_lock_names_the_revision_and_the_files(
    start: Callable[..., Any], sharded: Path, tmp_path: Path
) -> None:
    hub = start(sharded)
    commit = hub.repositories["own/model"].head("main").sha
    found = told(lock_of(sharded, tmp_path / "m.lock.json", commit))
    assert (found.repo, found.revision, found.license) == ("own/model", commit, "mit")
    assert found.count == told(sharded).count


def test_a_lock_whose_files_changed_is_a_hash_mismatch(
    start: Callable[..., Any], sharded: Path, tmp_path: Path
) -> None:
    lock = lock_of(sharded, tmp_path / "m.lock.json", "0" * 40)
    text = lock.read_text().replace(hash_file(sharded / "config.json"), "a" * 64)
    commit = start(sharded).repositories["own/model"].head("main").sha
    lock.write_text(text.replace("0" * 40, commit))
    with pytest.raises(HashMismatch, match="the bytes differ from the lock's sha256"):
        told(lock)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("status,code=404,on=info", "the hub answered 404"),
        ("no-range,path=*.safetensors", "does not answer range requests"),
        ("garbage,on=tree,text=[1]", "does not answer as a hub"),
        ("truncate,at=5,path=*.safetensors", "header"),
        ("flip,at=0,path=*.safetensors", "header"),
        ("flip,at=8,path=*.safetensors", "header does not begin with"),
        ("extra-path,text=../../etc/x", "do not use this repository"),
        ("extra-path,text=a\x1b[2Jb", "do not use this repository"),
    ],
)
def test_faults_are_one_clear_error(
    start: Callable[..., Any], sharded: Path, fault: str, said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "room").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "room"))
    start(sharded, fault)
    assert main(["inspect", "own/model"]) in (3, 4)
    found = capsys.readouterr()
    assert found.err.startswith("error: ") and "Traceback" not in found.err and "\x1b" not in found.err
    assert said in found.err and found.out == ""
    assert list((tmp_path / "room").iterdir()) == []


def test_a_config_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["x\x1b]0;evil\x07"]}))
    assert main(["inspect", str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes", [{"partial_rotary_factor": 10**400}, {"rms_norm_eps": 10**400}, {"model_type": "\ud800"}]
)
def test_values_that_are_no_numbers_or_texts_are_no_bugs(tmp_path: Path, changes: dict[str, Any]) -> None:
    copy = shutil.copytree(TINY, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    statuses = [
        main(words)
        for words in (
            ["inspect", str(copy)],
            ["plan", str(copy), "--target", "h200"],
            ["convert", str(copy), "-o", str(tmp_path / "out")],
        )
    ]
    assert statuses[0] == 0 and statuses[1] in (0, 1) and statuses[2] == 3


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or directory"):
        told("./nowhere/at all")
    with pytest.raises(UsageError, match="not owner/name"):
        told("nowhere/at all")
    with pytest.raises(UsageError, match="--revision goes with"):
        told(TINY, "main")
    with pytest.raises(ModelError, match="cannot be read"):
        told(tmp_path)
    (tmp_path / "config.json").symlink_to("gone")
    with pytest.raises(ModelError, match="repair a broken link"):
        told(tmp_path)


def test_pickle_weights_are_described_and_not_counted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"], "n_layer": 3}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    found = told(tmp_path)
    assert found.count is None and found.layers == 3 and "no safetensors" in found.refusal
    assert found.files["other weights"] == ("pytorch_model.bin",)


@pytest.mark.parametrize(
    ("config", "algorithm", "kv", "producer"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", None, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8_BLOCK_SCALES", None, "fp8"),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8",
             "producer": {"name": "modelopt", "version": "0.37.0"}},
            "NVFP4", "FP8", "modelopt 0.37.0",
        ),
        (
            {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
            "compressed-tensors", "FP8", None,
        ),
    ],
)  # fmt: skip
def test_quantization_is_told_as_the_model_says_it(
    tmp_path: Path,
    config: dict[str, Any],
    algorithm: str,
    kv: str | None,
    producer: str | None,
) -> None:
    from sparse_models import CONFIG

    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": config}))
    found = told(tmp_path).quantization
    assert (found.algorithm, found.kv_cache, found.producer) == (
        algorithm,
        kv,
        producer,
    )


def test_packed_weights_count_as_they_compute(tmp_path: Path) -> None:
    from sparse_models import CONFIG, write_sparse

    (tmp_path / "config.json").write_text(
        json.dumps({**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 8}})
    )
    write_sparse(
        tmp_path / "model.safetensors",
        {
            "a.weight": ("U8", [64, 32], 2048),  # NVFP4: two in a byte
            "a.weight_scale": ("F8_E4M3", [64, 4], 256),
            "b.qweight": ("I32", [16, 8], 512),  # 8 bits: four in a word
            "b.scales": ("F16", [1, 8], 16),
            "c.weight": ("BF16", [10], 20),
        },
    )
    count = told(tmp_path).count
    assert count.parameters == 64 * 64 + 16 * 8 * 4 + 10
    assert count.auxiliary == 256 + 8
    assert count.weight_bytes == sum(count.bytes_by_dtype.values()) == 2048 + 256 + 512 + 16 + 20


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model-00001-of-00002.safetensors", "weights"), ("model.safetensors.index.json", "index"),
        ("config.json", "configuration"), ("tokenizer.model", "tokenizer"), ("LICENSE.txt", "licence"),
        ("modeling_x.py", "code"), ("original/consolidated.00.pth", "other weights"),
        ("x.gguf", "other weights"), ("chat_template.jinja", "chat template"), ("whatever", "other"),
        ("hf_quant_config.json", "quantization"),
    ],
)  # fmt: skip
def test_roles(path: str, expected: str) -> None:
    assert find_role(path) == expected
