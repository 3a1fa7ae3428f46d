"""Conversions of further families by TensorRT-LLM's own scripts against ours, tensor by tensor."""

from __future__ import annotations

import json
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from compare import ABSENT, flat
from family_golden import FamilyConversion, digest_tensors, list_family_conversions
from golden_choice import choose_rows, mark_others_slow

from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConversionSpec, ConvertOptions, convert_model
from enginix.checkpoint.describe import LEFT_OUT
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.verify import verify_checkpoint
from enginix.errors import EnginixError
from enginix.model.family_rows import list_family_rows
from enginix.tables import load_table

PATTERNS = [pattern for row in list_family_rows().values() for pattern in row["golden"]] + ["llama-017"]
CASES = [c for c in list_family_conversions() if any(fnmatchcase(c.case, p) for p in PATTERNS)]
# Defects of release 0.17 alone: the class map of the supported releases has the architecture.
RIGHT_LATER = {"mpt-transformers-arch": "MptForCausalLM"}
SOUND = [c for c in CASES if c.error is None and c.defect is None]
OTHERS = [c for c in CASES if c not in SOUND]
# Tables that the loader computes itself and does not take from the file.
BUFFERS = (
    "embed_positions*",
    "rotary_inv_freq",
    "*.alibi_slopes",
    "*.logn_scaling",
    "*.embed_positions_for_gpt_attention",  # the DeepSeek-V2 class makes it with each layer
)
INTENDED = json.loads((Path(__file__).parent / "intended_family_differences.json").read_text())["rows"]


def convert_case(case: FamilyConversion, out: Path) -> ConversionSpec:
    mapping = CheckpointMapping(case.tensor_parallel, case.pipeline_parallel, case.expert_parallel)
    options = ConvertOptions(
        dtype=case.dtype,
        mapping=mapping,
        parallel_embedding=case.parallel_embedding,
        embedding_sharding_dim=case.embedding_sharding_dim,
        kind="tensorrt",
        variant=case.variant if "variants" in list_family_rows().get(read_architecture(case), {}) else None,
    )
    return convert_model(case.model, out, options)


def read_architecture(case: FamilyConversion) -> str:
    return str(json.loads((case.model / "config.json").read_text())["architectures"][0])


def complete_config(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json as the loader has it: absent keys hold their default."""
    return flat(raw | {section: defaults | raw.get(section, {}) for section, defaults in LEFT_OUT.items()})


def list_differences(case: FamilyConversion, out: Path) -> list[str]:
    found = []
    for rank, stored in enumerate(case.ranks):
        theirs = {n: t for n, t in stored.items() if not any(fnmatchcase(n, p) for p in BUFFERS)}
        ours = digest_tensors(out / f"rank{rank}.safetensors")
        found += [
            f"rank {rank}: {name}: {theirs.get(name, ABSENT)} became {ours.get(name, ABSENT)}"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
    theirs, ours = (
        complete_config(case.config),
        complete_config(json.loads((out / "config.json").read_text())),
    )
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key, ABSENT) != ours.get(key, ABSENT) and find_intended(case, key) is None:
            found.append(f"{key}: {theirs.get(key, ABSENT)!r} became {ours.get(key, ABSENT)!r}")
    return found


def find_intended(case: FamilyConversion, key: str) -> dict[str, str] | None:
    rows = (r for r in INTENDED if fnmatchcase(key, r["key"]) and fnmatchcase(case.id, r["only"]))
    return next(rows, None)


def list_features(case: FamilyConversion) -> list[tuple[Any, ...]]:
    """Return what a choice of rows must have.

    It has every model, every architecture in pipeline stages, and every mapping, dtype and cut of embeddings.
    """
    mapping = (case.tensor_parallel, case.pipeline_parallel, case.expert_parallel)
    stages = (read_architecture(case), case.pipeline_parallel)
    return [
        (case.case,),
        stages,
        (*mapping, case.dtype, case.parallel_embedding, case.embedding_sharding_dim),
    ]


# Of each model the row with most ranks: it shows the cuts.
CHOSEN = choose_rows(sorted(SOUND, key=lambda c: -c.tensor_parallel * c.pipeline_parallel), list_features)


@pytest.mark.parametrize("case", mark_others_slow(SOUND, CHOSEN))
def test_same_as_theirs(case: FamilyConversion, tmp_path: Path) -> None:
    convert_case(case, tmp_path / "out")
    assert list_differences(case, tmp_path / "out") == []
    assert verify_checkpoint(tmp_path / "out").findings == []
    assert list(CheckpointComparison(tmp_path / "out", case.model).findings()) == []


@pytest.mark.parametrize("case", OTHERS, ids=lambda c: c.id)
def test_right_or_refused(case: FamilyConversion, tmp_path: Path) -> None:
    """Where theirs raises or is wrong, ours differs and verifies, or refuses and says what to do."""
    try:
        convert_case(case, tmp_path / "out")
    except EnginixError as e:
        assert e.fix and not list(tmp_path.iterdir())
        return
    assert verify_checkpoint(tmp_path / "out").findings == []
    if case.case in RIGHT_LATER:
        assert RIGHT_LATER[case.case] in load_table("engine_classes")["engine"]
    else:
        assert case.error is not None or list_differences(case, tmp_path / "out")


def test_a_known_defect_is_all_that_differs() -> None:
    """DeepSeek's normalization of expert weights, which NVIDIA's script takes from its own default."""
    cases = [c for c in OTHERS if c.case == "deepseek-v1"]
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            convert_case(case, Path(directory) / "out")
            found = list_differences(case, Path(directory) / "out")
        assert found == ["moe.normalization_mode: 1 became 0"]
    assert len(cases) == 3


def test_every_intended_difference_is_seen(tmp_path: Path) -> None:
    """A row of the table that explains nothing any more must go."""
    seen = set()
    for case in {c.case: c for c in SOUND}.values():
        convert_case(case, tmp_path / case.case)
        theirs = complete_config(case.config)
        ours = complete_config(json.loads((tmp_path / case.case / "config.json").read_text()))
        for key in theirs.keys() | ours.keys():
            if theirs.get(key, ABSENT) != ours.get(key, ABSENT) and (row := find_intended(case, key)):
                seen.add((row["key"], row["only"]))
    assert seen == {(row["key"], row["only"]) for row in INTENDED}
