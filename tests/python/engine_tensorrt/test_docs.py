"""docs/explanation/verification.md lists all that TensorRT-LLM would have to confirm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from enginix import manifest
from enginix.cli import main
from enginix.tables import load_table

TEXT = (Path(__file__).parents[3] / "docs/explanation/verification.md").read_text("utf-8")
PART = TEXT.split("## What TensorRT-LLM would have to confirm", 1)[1].split("\n## ", 1)[0]


def section(title: str) -> str:
    # Lines are joined: where a sentence breaks is no fact.
    return " ".join(PART.split(f"### {title}\n", 1)[1].split("\n### ", 1)[0].split())


def test_flags_of_the_build() -> None:
    rows, said = load_table("build_options"), section("Flags of trtllm-build")
    assert f"{len(rows['options'])} typed options" in said
    assert f"{len(rows['removed'])} flags that are gone" in said and f"{len(rows['rules'])} rules" in said
    assert all(f"`{name}`" in said for name in rows["profiles"])
    assert all(f"`{row['flag']}`" in said for row in rows["limits"].values())
    known = {row["flag"] for part in ("limits", "options", "own") for row in rows[part].values()}
    gone = {row["flag"] for row in rows["removed"].values()}
    assert {f for f in re.findall(r"--\w+", said) if f != "--help"} <= known | gone


def test_flags_of_the_server() -> None:
    said = section("Flags of trtllm-serve")
    flags = set(load_table("llm_args")["serve"]["flags"].values())
    assert set(re.findall(r"--\w+", said)) - {"--help"} == flags


def test_arguments_of_the_llm_api() -> None:
    rows, said = load_table("llm_args"), section("LLM API")
    assert f"{len(rows['arguments'])} arguments" in said
    assert f"{len(rows['tensorrtOnly']['names'])} names of the TensorRT backend" in said


def test_failures_and_environment() -> None:
    assert f"has {len(load_table('failures')['failures'])} rows" in section("Known failures")
    assert f"{len(load_table('environment')['variables'])} variables" in section("Inside NVIDIA's images")


def test_images_with_something_public() -> None:
    told: dict[str, set[str]] = {"hash": set(), "digest": set()}
    for row in load_table("runtimes")["runtimes"].values():
        for tag, image in row.get("images", {}).items():
            for public in image["hashes"].values():
                for field in told:
                    told[field] |= {tag} if public[field] else set()
    said = section("Inside NVIDIA's images")
    assert (
        f"{' and '.join(sorted(told['hash']))} (hash), {' and '.join(sorted(told['digest']))} (digest" in said
    )


def test_every_field_of_the_manifest(rootfs, driver, model, checkpoint, tmp_path) -> None:
    words = ["build", str(checkpoint()), "--kind", "tensorrt", "--model", str(model), "--target", "h200"]
    words += ["--runtime", "trtllm-1.2.1", "--rootfs", str(rootfs), "--driver", str(driver())]
    assert main([*words, "-o", str(tmp_path / "engine")]) == 0
    made = manifest.read_manifest(tmp_path / "engine", "engine")
    said = section("The manifest")
    for field in (*made.target, *made.options):
        assert f"`{field}`" in said, field
    for part in ("runtime", "inputs", "results"):
        for field in getattr(made, part):
            assert f"{part}.{field}" in said, (part, field)
    built = section("The engine directory")
    assert all(f"`{name}`" in built for name in ("version", "pretrained_config", "build_config"))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|python|docs)/[\w./]+\w)`", TEXT))))
def test_what_is_named_exists(path) -> None:
    assert (Path(__file__).parents[3] / path).exists()
