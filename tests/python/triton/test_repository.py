"""Assembly of a repository from an engine, and every mistake that validation must catch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as schema

from enginix import manifest
from enginix.cli import main
from enginix.errors import EnginixError, ManifestError, RepositoryError, UsageError
from enginix.kinds.reference.served_engine import read_reference_engine
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.triton import config
from enginix.triton.options import RepositoryOptions

from .conftest import as_tensorrt


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
