"""A lock and the directory that it pins: plan and compare agree, or the lock says what it lacks."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import random_models
from family_golden import list_family_conversions
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.errors import ModelError
from enginix.hub.model_metadata import extract_model_metadata
from enginix.inspect import open_model
from enginix.kinds.planning.checkpoint_refusal import LOCK_LACKS_VALUES
from enginix.kinds.planning.lock_plan import plan_from_lock
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.kinds.planning.planner import plan_memory
from enginix.machine.gpu_table import find_gpu
from enginix.model.family_rows import list_family_rows
from enginix.report.kinds import compare_kinds, read_compared_model
from enginix.tables import load_table

KINDS = ("tensorrt", "reference")
GOLDEN = {case.case: case.model for case in list_family_conversions()}
LLAMA_LIKE = sorted(load_table("architectures")["architectures"])
ARCHITECTURES = sorted({*LLAMA_LIKE, *list_family_rows()})


def compare_both(directory: Path) -> None:
    """Require that a lock takes what its directory takes, and refuses nothing else without a note."""
    model = read_compared_model(directory)
    by_files = {row.kind: row for row in compare_kinds(model)}
    by_lock = {row.kind: row for row in compare_kinds(replace(model, directory=None, rotation=None))}
    for kind in by_files:
        ours, theirs = by_files[kind], by_lock[kind]
        assert theirs.takes or not ours.takes, (kind, theirs.why)
        if theirs.takes and not ours.takes and kind in KINDS:
            assert LOCK_LACKS_VALUES in theirs.why, (kind, ours.why)
    config = (directory / "config.json").read_bytes()
    facts, gpu = extract_model_metadata({"config.json": config}, "lock"), find_gpu("h200")
    for kind in KINDS:
        try:
            plan = plan_from_lock(facts, {"model.safetensors": 1000}, gpu, PlanRequest(kind), "lock")
        except ModelError:  # a size of its own, or a KV cache that is not counted by heads
            continue
        assert bool(plan.obstacles) != by_lock[kind].takes, (kind, plan.obstacles, by_lock[kind].why)
        assert LOCK_LACKS_VALUES in plan.notes
        with open_model(str(directory)) as opened:
            obstacles = plan_memory(opened, gpu, PlanRequest(kind)).obstacles
        assert bool(obstacles) != by_files[kind].takes, (kind, obstacles, by_files[kind].why)


@pytest.mark.parametrize("case", sorted(GOLDEN))
def test_golden_models(case: str) -> None:
    compare_both(GOLDEN[case])


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_models_of_every_architecture(data: st.DataObject) -> None:
    """With another model_type, another value of a key that a row refuses, or as they are."""
    name = data.draw(st.sampled_from(ARCHITECTURES))
    with tempfile.TemporaryDirectory() as work:
        directory = Path(work) / "model"
        if name in LLAMA_LIKE:
            random_models.write(directory, raw := random_models.config(name))
        else:
            paths = [p for p in GOLDEN.values() if name in (p / "config.json").read_text()]
            if not paths:
                return
            directory.mkdir()
            source = data.draw(st.sampled_from(paths))
            raw = json.loads((source / "config.json").read_text())
            for path in source.iterdir():
                if path.name != "config.json":
                    (directory / path.name).symlink_to(path)
        changes: dict[str, Any] = {}
        keys = [rule["key"] for rule in list_family_rows().get(name, {}).get("refuse", ())]
        plain = [key for key in keys if "." not in key]
        if plain and data.draw(st.booleans()):
            changes[data.draw(st.sampled_from(plain))] = data.draw(st.sampled_from([True, False, None, 2]))
        if data.draw(st.booleans()):
            changes["model_type"] = data.draw(st.sampled_from(["llama", "gpt2", "unheard"]))
        (directory / "config.json").write_text(json.dumps(raw | changes))
        compare_both(directory)
