"""The demo's own parts: sizes, where the model's files came from, derivations that exist already."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("enginix_demo", ROOT / "demo/demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_size_follows_links_to_files_and_directories(demo: ModuleType, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "rank0.safetensors").write_bytes(bytes(1000))
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "enginix.json").write_bytes(bytes(10))
    (engine / "checkpoint").symlink_to(checkpoint)
    (engine / "one").symlink_to(checkpoint / "rank0.safetensors")
    assert demo.size_of(engine) == 2010
    (engine / "loop").symlink_to(engine)
    assert demo.size_of(engine) == 2010
    assert demo.size_of(checkpoint / "rank0.safetensors") == 1000


@pytest.mark.parametrize(
    ("requests", "built", "words"),
    [
        ("{}\n{}\n", 9, "http://127.0.0.1:1 served enginix/tiny-qwen3"),
        ("", 9, "the model's own, inside the build"),
        ("", 0, "the model's files are in the store"),
    ],
)
def test_the_hub_that_served_is_named(
    demo: ModuleType, tmp_path: Path, requests: str, built: int, words: str
) -> None:
    log = tmp_path / "requests"
    if requests:
        log.write_text(requests)
    assert words in demo.describe_hub(demo.DemoHub("http://127.0.0.1:1", log), built)


def test_derivations_are_realised_without_evaluation(demo: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "stages"
    file.write_text("".join(f"{stage}=/nix/store/x-{stage}.drv\n" for stage, _, _ in demo.STAGES))
    stages = demo.read_derivations(file)
    assert stages.build_command("engine") == ["nix-store", "--realise", "/nix/store/x-engine.drv"]
    assert stages.read_path("/nix/store/x-engine\n") == Path("/nix/store/x-engine")
    file.write_text("model=/nix/store/x-model.drv\n")
    with pytest.raises(demo.DemoError, match="lacks the stage checkpoint"):
        demo.read_derivations(file)
