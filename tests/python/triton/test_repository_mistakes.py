"""Mistakes in a repository: each is named before Triton sees it, or misreads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginix.errors import RepositoryError
from enginix.kinds.tensorrt.tensorrt_models import NvidiaModelOptions
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.kinds.triton_repository.validate import validate_repository
from enginix.triton import contract
from enginix.triton.options import RepositoryOptions

from .conftest import made_repository, make_engine

KNOWN = {
    "reference": contract.load_reference_contract(),
    "tensorrt": contract.build_tensorrt_contract(NvidiaModelOptions().datatypes()),
}


def edit(repository: Path, model: str, *changes: tuple[str, str]) -> None:
    path = repository / model / "config.pbtxt"
    text = path.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    path.write_text(text)


def refusal(repository: Path, kind: str = "reference", **arguments: Any) -> str:
    with pytest.raises(RepositoryError) as caught:
        validate_repository(repository, known=KNOWN[kind], **arguments)
    return str(caught.value)


# Mistake, kind of the repository, the edit that makes it, and a part of the error.
MISTAKES: list[tuple[str, str, Callable[[Path], None], str]] = [
    (
        "no version directory",
        "tensorrt",
        lambda r: (r / "ensemble" / "1").rmdir(),
        "ensemble: no numeric version directory",
    ),
    (
        "version directory with a name",
        "tensorrt",
        lambda r: _rename(r / "ensemble" / "1", "v1"),
        "no numeric version directory",
    ),
    (
        "directory's name is not the model's",
        "tensorrt",
        lambda r: edit(r, "postprocessing", ('name: "postprocessing"', 'name: "postprocess"')),
        "name: 'postprocess' is not the directory's name",
    ),
    (
        "stray directory",
        "reference",
        lambda r: (r / "tokenizer").mkdir(),
        "tokenizer: directory without config.pbtxt",
    ),
    (
        "placeholder",
        "reference",
        lambda r: edit(
            r,
            "ensemble",
            ("max_batch_size: 4", "max_batch_size: ${triton_max_batch_size}"),
        ),
        "placeholder ${triton_max_batch_size} was never replaced",
    ),
    (
        "map key that the step lacks",
        "tensorrt",
        lambda r: edit(r, "ensemble", ('key: "seed"', 'key: "random_seed"')),
        "step tensorrt_llm: no input random_seed",
    ),
    (
        "output that the step lacks",
        "tensorrt",
        lambda r: edit(r, "ensemble", ('key: "output_ids"', 'key: "output_idx"')),
        "step tensorrt_llm: no output output_idx\n  fix: did you mean output_ids?",
    ),
    (
        "required input that is not mapped",
        "tensorrt",
        lambda r: edit(
            r,
            "ensemble",
            (
                'input_map {\n      key: "input_lengths"\n      value: "_REQUEST_INPUT_LEN"\n    }',
                "",
            ),
        ),
        "required input input_lengths is not mapped",
    ),
    (
        "ensemble input without a step",
        "tensorrt",
        lambda r: edit(
            r,
            "ensemble",
            (
                "output {",
                'input { name: "unused" data_type: TYPE_INT32 dims: 1 }\noutput {',
            ),
        ),
        "input unused: unknown",
    ),
    (
        "ensemble output without a step",
        "tensorrt",
        lambda r: edit(r, "ensemble", ('value: "text_output"', 'value: "text_out"')),
        "output text_output: no step produces it\n  fix: did you mean text_out?",
    ),
    (
        "tensor without a step",
        "tensorrt",
        lambda r: edit(r, "ensemble", ('value: "_TOKENS_BATCH"', 'value: "_TOKENS"')),
        "tensor _TOKENS",
    ),
    (
        "data type",
        "reference",
        lambda r: edit(
            r,
            "ensemble",
            (
                'name: "seed"\n  data_type: TYPE_UINT64',
                'name: "seed"\n  data_type: TYPE_INT64',
            ),
        ),
        "seed: TYPE_INT64 [1], expected TYPE_UINT64 [1]",
    ),
    (
        "ensemble's batch above a step's",
        "tensorrt",
        lambda r: edit(r, "ensemble", ("max_batch_size: 4", "max_batch_size: 8")),
        "max_batch_size: 8 is above preprocessing's 4",
    ),
    (
        "ensemble without batches over batching steps",
        "tensorrt",
        lambda r: edit(r, "ensemble", ("max_batch_size: 4", "")),
        "max_batch_size: 0 over preprocessing's 4",
    ),
    (
        "preferred batch above the batch",
        "tensorrt",
        lambda r: edit(
            r,
            "preprocessing",
            (
                "preferred_batch_size: 4",
                "preferred_batch_size: [1, 2, 4, 8]",
            ),
        ),
        "preferred_batch_size: 8 is above max_batch_size 4",
    ),
    (
        "instances of an ensemble",
        "tensorrt",
        lambda r: edit(
            r,
            "ensemble",
            ("ensemble_scheduling", "instance_group { count: 1 }\nensemble_scheduling"),
        ),
        "instance_group: an ensemble has no instances",
    ),
    (
        "backend of an ensemble",
        "tensorrt",
        lambda r: edit(r, "ensemble", ('platform: "ensemble"', 'backend: "ensemble"')),
        "backend: 'ensemble' on an ensemble",
    ),
    (
        "parameter that is no string",
        "reference",
        lambda r: edit(r, "tensorrt_llm", ('string_value: "1"', "int64_value: 1")),
        "parameters are string_value only",
    ),
    (
        "output declared twice",
        "tensorrt",
        lambda r: edit(
            r,
            "ensemble",
            (
                "ensemble_scheduling",
                'output { name: "text_output" data_type: TYPE_STRING dims: -1 }\nensemble_scheduling',
            ),
        ),
        "output text_output: declared twice",
    ),
    (
        "tokenizer on a GPU",
        "tensorrt",
        lambda r: edit(r, "preprocessing", ("kind: KIND_CPU", "kind: KIND_GPU")),
        "preprocessing: instance_group kind",
    ),
    (
        "parameter key with a typo",
        "reference",
        lambda r: edit(
            r,
            "tensorrt_llm",
            ('key: "exclude_input_in_output"', 'key: "exclude_input_output"'),
        ),
        "parameter exclude_input_output: unknown\n  fix: did you mean exclude_input_in_output?",
    ),
    (
        "parameter that must be there",
        "reference",
        lambda r: edit(r, "tensorrt_llm", ('key: "gpt_model_type"', 'key: "max_beam_width"')),
        "parameter gpt_model_type: missing",
    ),
    (
        "path that is not there",
        "tensorrt",
        lambda r: edit(r, "preprocessing", ("engine/tokenizer", "engine/tokeniser")),
        "engine/tokeniser' is not a directory",
    ),
    (
        "no model.py",
        "reference",
        lambda r: (r / "tensorrt_llm" / "1" / "model.py").unlink(),
        "tensorrt_llm/1: no model.py",
    ),
    (
        "tensor of a model with another shape",
        "tensorrt",
        lambda r: edit(r, "postprocessing", ("dims: -1\n  dims: -1", "dims: -1")),
        "input TOKENS_BATCH: TYPE_INT32 [-1], expected TYPE_INT32 [-1, -1]",
    ),
    (
        "unknown step",
        "tensorrt",
        lambda r: edit(
            r,
            "ensemble",
            ('model_name: "postprocessing"', 'model_name: "postprocesing"'),
        ),
        "step postprocesing: no such model\n  fix: did you mean postprocessing?",
    ),
    (
        "no version directory, of the reference kind",
        "reference",
        lambda r: shutil.rmtree(r / "ensemble" / "1"),
        "ensemble: no numeric version directory",
    ),
    (
        "version directory with a name, of the reference kind",
        "reference",
        lambda r: _rename(r / "ensemble" / "1", "v1"),
        "no numeric version directory",
    ),
    (
        "directory's name is not the model's, of the reference kind",
        "reference",
        lambda r: edit(r, "ensemble", ('name: "ensemble"', 'name: "assembly"')),
        "name: 'assembly' is not the directory's name",
    ),
    (
        "placeholder in an ensemble",
        "tensorrt",
        lambda r: edit(r, "ensemble", ("max_batch_size: 4", "max_batch_size: ${triton_max_batch_size}")),
        "placeholder ${triton_max_batch_size} was never replaced",
    ),
    (
        "unknown input, of the reference kind",
        "reference",
        lambda r: edit(
            r,
            "ensemble",
            ("output {", 'input { name: "unused" data_type: TYPE_INT32 dims: 1 }\noutput {'),
        ),
        "input unused: unknown",
    ),
    (
        "data type in an ensemble",
        "tensorrt",
        lambda r: edit(
            r,
            "ensemble",
            ('name: "seed"\n  data_type: TYPE_UINT64', 'name: "seed"\n  data_type: TYPE_INT64'),
        ),
        "seed: TYPE_INT64 [1], expected TYPE_UINT64 [1]",
    ),
    (
        "output declared twice, of the reference kind",
        "reference",
        lambda r: edit(
            r,
            "ensemble",
            (
                "instance_group",
                'output { name: "text_output" data_type: TYPE_STRING dims: -1 }\ninstance_group',
            ),
        ),
        "output text_output: declared twice",
    ),
    (
        "postprocessing on a GPU",
        "tensorrt",
        lambda r: edit(r, "postprocessing", ("kind: KIND_CPU", "kind: KIND_GPU")),
        "postprocessing: instance_group kind",
    ),
    (
        "tokenizer on a GPU, of the reference kind",
        "reference",
        lambda r: edit(r, "ensemble", ("kind: KIND_CPU", "kind: KIND_GPU")),
        "ensemble: instance_group kind",
    ),
    (
        "path that is not there, of the reference kind",
        "reference",
        lambda r: edit(r, "ensemble", ("engine/tokenizer", "engine/tokeniser")),
        "engine/tokeniser' is not a directory",
    ),
    (
        "no model.py of the ensemble",
        "reference",
        lambda r: (r / "ensemble" / "1" / "model.py").unlink(),
        "ensemble/1: no model.py",
    ),
    (
        "tensor of another shape, of the reference kind",
        "reference",
        lambda r: edit(
            r,
            "ensemble",
            (
                'name: "text_output"\n  data_type: TYPE_STRING\n  dims: -1',
                'name: "text_output"\n  data_type: TYPE_STRING\n  dims: 1',
            ),
        ),
        "output text_output: TYPE_STRING [1], expected TYPE_STRING [-1]",
    ),
]


def _rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A repository of each kind without a mistake, which tests copy."""
    repositories = {}
    for kind in KNOWN:
        directory = tmp_path_factory.mktemp(kind)
        repositories[kind] = made_repository(
            make_engine(directory / "engine"), kind, directory / "repository"
        )
        validate_repository(repositories[kind], known=KNOWN[kind])
    return repositories


@pytest.mark.parametrize(
    ("kind", "break_it", "expected"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_every_known_mistake_is_named(
    sound: dict[str, Path], tmp_path: Path, kind: str, break_it: Callable[[Path], None], expected: str
) -> None:
    repository = shutil.copytree(sound[kind], tmp_path / "repository", symlinks=True)
    break_it(repository)
    assert expected in refusal(repository, kind)


def test_a_type_that_differs_between_steps(with_ensemble: Path) -> None:
    """In a model that has no contract, only the maps can show it."""
    edit(
        with_ensemble,
        "ensemble",
        (
            'name: "top_p"\n  data_type: TYPE_FP32',
            'name: "top_p"\n  data_type: TYPE_FP64',
        ),
    )
    with pytest.raises(
        RepositoryError,
        match="runtime_top_p is TYPE_FP32, but the ensemble's input is TYPE_FP64",
    ):
        validate_repository(with_ensemble)


def test_an_ensemble_input_without_use_in_a_model_without_contract(
    with_ensemble: Path,
) -> None:
    edit(
        with_ensemble,
        "ensemble",
        (
            "output {",
            'input { name: "unused" data_type: TYPE_INT32 dims: 1 }\noutput {',
        ),
    )
    with pytest.raises(RepositoryError, match="input unused: no step uses it"):
        validate_repository(with_ensemble)


def test_several_mistakes_are_all_told(repository: Path) -> None:
    (repository / "a").mkdir()
    (repository / "b").mkdir()
    text = refusal(repository)
    assert text.startswith("a: directory without")
    assert "also: b: directory without" in text


def test_limits_above_the_engine_s(hand_made: Any, repository: Path, tmp_path: Path) -> None:
    assert "max_batch_size: 4 is above the engine's 2" in refusal(repository, max_batch_size=2)
    hand_made.rewrite(options={"limits": {"max_batch_size": 2, "max_seq_len": 64}})
    with pytest.raises(RepositoryError, match="max_batch_size: 4 is above the engine's 2"):
        build_triton_repository(hand_made.directory, tmp_path / "out", RepositoryOptions(max_batch_size=4))
    with pytest.raises(RepositoryError, match="max_tokens_limit: 64 is above 63"):
        build_triton_repository(hand_made.directory, tmp_path / "out", RepositoryOptions(max_tokens_limit=64))
    assert not (tmp_path / "out").exists()
    assert build_triton_repository(hand_made.directory, tmp_path / "out")["max_batch_size"] == 2
