"""Assembly of a repository from an engine, and every mistake that validation must catch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as schema

from enginix import manifest
from enginix.cli import main
from enginix.errors import EnginixError, ManifestError, RepositoryError, UsageError
from enginix.kinds.reference.served_engine import read_reference_engine
from enginix.kinds.tensorrt.tensorrt_models import NvidiaModelOptions
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.kinds.triton_repository.validate import validate_repository
from enginix.triton import config, contract
from enginix.triton.options import RepositoryOptions

from .conftest import as_tensorrt

KNOWN = {
    "reference": contract.load_reference_contract(),
    "tensorrt": contract.build_tensorrt_contract(NvidiaModelOptions().datatypes()),
}


def made(engine: Any, kind: str, out: Path) -> Path:
    """A repository of this kind."""
    directory = as_tensorrt(engine) if kind == "tensorrt" else engine.directory
    build_triton_repository(directory, out, RepositoryOptions(max_batch_size=4))
    return out


@pytest.fixture
def repository(hand_made: Any, tmp_path: Path) -> Path:
    return made(hand_made, "reference", tmp_path / "repository")


@pytest.fixture
def with_ensemble(hand_made: Any, tmp_path: Path) -> Path:
    """A repository with one of Triton's own ensembles, which the reference kind does not have."""
    return made(hand_made, "tensorrt", tmp_path / "repository")


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


def test_a_repository_has_its_two_models_and_nothing_else(repository: Path) -> None:
    assert sorted(p.name for p in repository.iterdir() if p.is_dir()) == ["ensemble", "tensorrt_llm"]
    found = manifest.read_manifest(repository, "triton-repository")
    assert (
        found.kind,
        found.options["max_batch_size"],
        found.options["max_tokens_limit"],
    ) == (
        "reference",
        4,
        127,
    )
    for model in ("ensemble", "tensorrt_llm"):
        assert [p.name for p in (repository / model / "1").iterdir()] == ["model.py"]
        assert "@" not in (repository / model / "1" / "model.py").read_text()
        written = config.read_pbtxt(repository / model / "config.pbtxt")
        assert (written.backend, written.platform) == ("python", "")
        assert written.model_transaction_policy.decoupled
        assert not written.HasField("ensemble_scheduling")


def test_paths_and_ids_are_those_of_the_engine(repository: Path, hand_made: Any) -> None:
    for model, key, path in (
        ("ensemble", "tokenizer_dir", "tokenizer"),
        ("tensorrt_llm", "gpt_model_path", "checkpoint"),
    ):
        parameters = config.read_pbtxt(repository / model / "config.pbtxt").parameters
        assert parameters[key].string_value == str(hand_made.directory / path)
        assert parameters["end_ids"].string_value == "0,5"
        assert Path(parameters["enginix_path"].string_value, "enginix", "triton").is_dir()


def test_instances_are_of_the_ensemble_alone(hand_made: Any, tmp_path: Path) -> None:
    build_triton_repository(hand_made.directory, tmp_path / "out", RepositoryOptions(ensemble_instances=2))
    groups = {
        model: [
            (g.count, g.kind)
            for g in config.read_pbtxt(tmp_path / "out" / model / "config.pbtxt").instance_group
        ]
        for model in ("ensemble", "tensorrt_llm")
    }
    cpu = schema.ModelInstanceGroup.KIND_CPU
    assert groups == {"ensemble": [(2, cpu)], "tensorrt_llm": [(1, cpu)]}


OPTIONS_OF_TENSORRT = ("preprocessing_instances", "postprocessing_instances", "max_queue_delay_microseconds")


@pytest.mark.parametrize("name", OPTIONS_OF_TENSORRT)
def test_options_of_the_kind_tensorrt_are_refused(
    hand_made: Any, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = "--" + name.replace("_", "-")
    with pytest.raises(UsageError, match=f"{flag}: not supported by the kind reference"):
        build_triton_repository(hand_made.directory, tmp_path / "out", RepositoryOptions(**{name: 2}))
    assert main(["triton-repo", str(hand_made.directory), "-o", str(tmp_path / "out"), flag, "2"]) == 2
    assert f"{flag}: not supported by the kind reference" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_the_manifest_has_the_options_of_its_kind_only(repository: Path) -> None:
    found = manifest.read_manifest(repository, "triton-repository").options
    assert not set(OPTIONS_OF_TENSORRT) & set(found)
    assert found["ensemble_instances"] == 1


def test_the_same_engine_gives_the_same_bytes(hand_made: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_triton_repository(hand_made.directory, tmp_path / name)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 5
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_model_py_compiles(repository: Path) -> None:
    for path in repository.glob("*/1/model.py"):
        compile(path.read_text(), str(path), "exec")


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


@pytest.mark.parametrize(
    ("kind", "break_it", "expected"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_every_known_mistake_is_named(
    hand_made: Any, tmp_path: Path, kind: str, break_it: Callable[[Path], None], expected: str
) -> None:
    repository = made(hand_made, kind, tmp_path / "repository")
    validate_repository(repository, known=KNOWN[kind])
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


def test_models_beside_are_linked_and_checked(hand_made: Any, tmp_path: Path) -> None:
    good = tmp_path / "echo"
    (good / "1").mkdir(parents=True)
    (good / "1" / "model.py").write_text("")
    (good / "config.pbtxt").write_text('name: "echo"\nbackend: "python"\n')
    build_triton_repository(hand_made.directory, tmp_path / "out", add_models=[good])
    assert (tmp_path / "out" / "echo" / "config.pbtxt").is_file()
    (good / "config.pbtxt").write_text('name: "other"\nbackend: "python"\n')
    with pytest.raises(RepositoryError, match="'other' is not the directory's name"):
        build_triton_repository(hand_made.directory, tmp_path / "out2", add_models=[good])
    with pytest.raises(UsageError, match="has a model ensemble already"):
        (tmp_path / "x" / "ensemble").mkdir(parents=True)
        build_triton_repository(
            hand_made.directory,
            tmp_path / "out2",
            add_models=[tmp_path / "x" / "ensemble"],
        )
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda e: (e / "tokenizer" / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda e: (e / "tokenizer" / "tokenizer.json").write_text("{"), "unreadable"),
        (
            lambda e: (e / "checkpoint" / "config.json").unlink(),
            "checkpoint/config.json: missing",
        ),
        (
            lambda e: (e / "checkpoint" / "config.json").write_text("[]"),
            "not a JSON object",
        ),
        (
            lambda e: (e / "tokenizer" / "generation_config.json").write_text('{"eos_token_id": [-4]}'),
            "eos_token_id: -4",
        ),
        (lambda e: (e / "enginix.json").unlink(), "no enginix.json"),
    ],
)
def test_broken_engines_are_named_and_nothing_is_written(
    hand_made: Any, tmp_path: Path, break_it: Callable[[Path], None], expected: str
) -> None:
    break_it(hand_made.directory)
    with pytest.raises(EnginixError) as caught:
        build_triton_repository(hand_made.directory, tmp_path / "out")
    assert expected in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


def test_other_kinds_are_refused(hand_made: Any) -> None:
    hand_made.rewrite(kind="edgellm")
    with pytest.raises(ManifestError, match="kind 'edgellm' has no Triton repository"):
        build_triton_repository(hand_made.directory, hand_made.directory.with_name("out"))


def test_end_ids_are_those_of_the_manifest(hand_made: Any) -> None:
    """End tokens are those of the gates and the golden answer, not the tokenizer's own."""
    (hand_made.directory / "tokenizer" / "generation_config.json").unlink()
    (hand_made.directory / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|end|>"}, "pad_token": "<|end|>"})
    )
    hand_made.rewrite(model={"endTokens": [7]})
    assert read_reference_engine(hand_made.directory).end_ids == (7,)
    hand_made.rewrite(model={})
    with pytest.raises(RepositoryError, match=r"endTokens is None"):
        read_reference_engine(hand_made.directory)


def test_end_ids_of_manifest_and_tokenizer_do_not_differ(hand_made: Any) -> None:
    hand_made.rewrite(model={"endTokens": [7]})
    with pytest.raises(RepositoryError, match=r"\[7\].*\[0, 5\]"):
        read_reference_engine(hand_made.directory)


def test_a_model_without_end_tokens_is_said(hand_made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (hand_made.directory / "tokenizer" / "generation_config.json").unlink()
    hand_made.rewrite(model={"endTokens": []})
    out = hand_made.directory.with_name("out")
    assert main(["triton-repo", str(hand_made.directory), "-o", str(out)]) == 0
    assert "names no end token" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_size": 0},
        {"max_queue_size": -1},
        {"preprocessing_instances": 2**40},
        {"postprocessing_instances": 0},
        {"ensemble_instances": 0},
        {"ensemble_instances": 2**40},
        {"max_queue_delay_microseconds": -1},
        {"device": "tpu"},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RepositoryOptions(**options)


def test_the_command(hand_made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = [
        "triton-repo",
        str(hand_made.directory),
        "-o",
        str(out),
        "--max-batch-size",
        "2",
        "--json",
    ]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["options"]["max_batch_size"] == 2
    assert main(words) == 2
    assert "output exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "expected"),
    [({}, ""), ({"attentionWindow": [32]}, "32"), ({"attentionWindow": [128, 32]}, "64,32"),
     ({"attentionWindow": [4096]}, "")],
)  # fmt: skip
def test_the_models_window_is_set_for_the_backend(
    hand_made: Any, tmp_path: Path, model: dict[str, Any], expected: str
) -> None:
    """The C++ backend computes full attention unless it is told; the engine takes 64 tokens here."""
    as_tensorrt(hand_made)
    found = manifest.read_manifest(hand_made.directory)
    hand_made.rewrite(kind=found.kind, runtime=found.runtime, options=found.options, model=model)
    build_triton_repository(hand_made.directory, tmp_path / "out", RepositoryOptions(max_batch_size=4))
    text = (tmp_path / "out/tensorrt_llm/config.pbtxt").read_text()
    said = text.split("max_attention_window_size", 1)
    assert (f'"{expected}"' in said[1][:80]) if expected else len(said) == 1
