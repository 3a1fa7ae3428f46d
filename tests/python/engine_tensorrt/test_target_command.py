"""`enginix target`: the table of GPUs as people read it, and which of them is here."""

from __future__ import annotations

import json
from pathlib import Path

from enginix.cli import main
from enginix.machine import driver as driver_module
from enginix.machine.driver import Driver
from enginix.tables import load_table


def test_every_target_with_its_formats(driver, capsys) -> None:
    assert main(["target", "--driver", str(driver()), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in told["targets"]} == set(load_table("gpus")["gpus"])
    rows = {row["name"]: row for row in told["targets"]}
    assert rows["h200"]["here"] == 1 and rows["h100"]["here"] == 0
    assert "NVFP4" not in rows["h200"]["formats"] and "FP8" in rows["h200"]["formats"]
    assert set(rows["b200"]["formats"]) - set(rows["b200"]["tensorrtFormats"]) == {"INT8", "INT4"}
    assert rows["rtx-5090"]["tensorrtFormats"] == rows["rtx-5090"]["formats"]


def test_some_targets_without_a_driver(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(driver_module, "find_driver", lambda root: Driver(root or tmp_path))
    assert main(["target", "b200", "--driver", str(tmp_path)]) == 5  # a driver that is named and is not there
    capsys.readouterr()
    assert main(["target", "b200", "gb10", "a16"]) == 0
    said = capsys.readouterr().out
    assert "engines of kind tensorrt take no INT8, INT4" in said and "shared with the CPU" in said
    assert "memory unknown" in said and said.count("source:") == 3 and "here" not in said
    assert main(["target", "h2000"]) == 2 and "did you mean h200" in capsys.readouterr().err


def test_a_name_of_several_memories_is_listed_whole_and_noted(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(driver_module, "find_driver", lambda root: Driver(tmp_path))

    def listed(*names: str) -> list[str]:
        assert main(["target", *names, "--json"]) == 0
        return [row["name"] for row in json.loads(capsys.readouterr().out)["targets"]]

    assert listed("a100") == ["a100-80gb", "a100-40gb"] and listed("a100-80gb") == ["a100-80gb"]
    assert set(listed("NVIDIA V100", "rtx 2060")) == {"v100-32gb", "v100-16gb", "rtx-2060", "rtx-2060-12gb"}
    lock = str(Path(__file__).parents[2] / "models" / "tiny-qwen3.lock.json")
    for name, note in (
        ("a100", "a100-40gb; say a100-80gb"),
        ("2060", "rtx-2060; say rtx-2060-12gb"),
        ("h200", None),
        ("a100-40gb", None),
    ):
        main(["plan", lock, "--target", name, "--offline"])
        errors = capsys.readouterr().err
        assert ("was taken for" in errors) == (note is not None) and (note or "") in errors


def test_a_memory_is_asked_for_only_where_it_helps(capsys) -> None:
    lock = str(Path(__file__).parents[2] / "models" / "tiny-qwen3.lock.json")
    assert main(["plan", lock, "--target", "vr200", "--kind", "tensorrt", "--offline"]) == 2
    refusal = capsys.readouterr().err
    assert "vr200 is SM 107" in refusal and "--memory" not in refusal
    assert main(["plan", lock, "--target", "vr200", "--kind", "llmapi", "--offline"]) == 2
    assert "--memory" in capsys.readouterr().err


def test_a_plan_without_a_kind_is_for_one_that_the_gpu_runs(capsys) -> None:
    lock = str(Path(__file__).parents[2] / "models" / "tiny-qwen3.lock.json")
    for name, kind in (
        ("h200", "tensorrt"),
        ("jetson-t5000", "edgellm"),
        ("sm107-288gb", "llmapi"),
        ("t4", "reference"),
    ):
        assert main(["plan", lock, "--target", name, "--offline", "--json"]) == 0
        answer = capsys.readouterr()
        assert json.loads(answer.out)["kind"] == kind
        assert (f"planned for kind {kind}" in answer.err) == (kind != "tensorrt")


def test_a_gpu_that_is_too_old_is_no_target(driver, capsys) -> None:
    root = driver()
    program = root / "bin" / "nvidia-smi"
    row = "0, NVIDIA GeForce GTX 1080 Ti, GPU-0, 6.1, 11264, 11000, 580.95.05"
    program.write_text(f'#!/bin/sh\ncase $1 in *compute-apps*) ;; *) echo "{row}" ;; esac\n')
    assert main(["target", "--this-machine", "--driver", str(root)]) == 0
    listing = capsys.readouterr().out
    assert "no target: target 'sm61-11gb': SM 61 is before SM 70" in listing and 'kind "reference"' in listing
