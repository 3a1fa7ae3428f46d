"""What each stage writes about its files and its model, and that a change of either is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from enginix import manifest
from enginix.checkpoint import convert as conversion
from enginix.cli import main
from enginix.digests import ContentDigest
from enginix.errors import EnginixError, ManifestError
from enginix.integrity import check_artefact, require_unchanged
from enginix.manifest import Manifest, read_manifest, require_whole_manifest
from enginix.model.identity import identify_model, is_same_model
from enginix.model.tokenizer_files import is_tokenizer_file
from manifests import age_manifest, edit_manifest

from .conftest import MODEL, Stages


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def list_all(directory: Path) -> dict[str, str]:
    names = (p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return {name: sha256(directory / name) for name in names if name != "enginix.json"}


@pytest.mark.parametrize("stage", ["checkpoint", "engine", "repository"])
def test_a_manifest_lists_every_file(stages: Stages, stage: str) -> None:
    directory = stages.root / stage
    files = read_manifest(directory).files
    assert files is not None and files
    assert {name: digest.sha256 for name, digest in files.items()} == list_all(directory)
    assert all((directory / name).stat().st_size == digest.size for name, digest in files.items())


def test_the_manifest_has_its_own_digest(whole: Stages) -> None:
    text = (whole.engine / "enginix.json").read_text()
    digest = json.loads(text)["digest"]
    assert hashlib.sha256(text.replace(digest, "0" * 64).encode()).hexdigest() == digest
    require_whole_manifest(whole.engine)


def test_nothing_volatile_is_in_it(whole: Stages, tmp_path: Path) -> None:
    words = ["convert", str(MODEL), "-o", str(tmp_path / "again"), "--dtype", "float32"]
    assert main(words) == 0
    assert (tmp_path / "again/enginix.json").read_bytes() == (whole.checkpoint / "enginix.json").read_bytes()


def test_links_have_the_digests_of_what_they_lead_to(stages: Stages, tmp_path: Path) -> None:
    words = ["build", str(stages.checkpoint), "--kind", "reference", "--model", str(MODEL), "--no-gates"]
    assert main([*words, "--link-checkpoint", "-o", str(tmp_path / "linked")]) == 0
    assert read_manifest(tmp_path / "linked").files == read_manifest(stages.engine).files
    assert (tmp_path / "linked" / "enginix.json").read_bytes() == (
        stages.engine / "enginix.json"
    ).read_bytes()


def fine_tune(directory: Path) -> Path:
    """Another model of the same shapes: only weights differ."""
    shutil.copytree(MODEL, directory)
    tensors = load_file(directory / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][::-1].copy()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_other_weights_of_equal_shapes_are_another_model(
    stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = fine_tune(tmp_path / "other")
    first, second = (identify_model(m)["model"] for m in (MODEL, other))
    assert (
        not is_same_model(first, second) and first["files"]["config.json"] == second["files"]["config.json"]
    )
    words = ["build", str(stages.checkpoint), "--kind", "reference", "--model", str(other), "--no-gates"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 3
    assert "the checkpoint was made from a model with digest" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "generation_config.json", "merges.txt"]
)
def test_a_tokenizer_changed_after_the_conversion_makes_no_engine(
    stages: Stages, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Changed, or added: the checkpoint has digests of all tokenizer files."""
    changed = shutil.copytree(MODEL, tmp_path / "changed")
    with (changed / name).open("a") as f:
        f.write(" ")
    words = ["build", str(stages.checkpoint), "--kind", "reference", "--model", str(changed), "--no-gates"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 3
    assert f"; different: {name}\n" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_files_that_are_no_tokenizers_may_differ(tmp_path: Path) -> None:
    """A copy without the licence is the same model; so is one that was converted without its tokenizer."""
    copy = shutil.copytree(MODEL, tmp_path / "copy")
    (copy / "LICENSE").unlink()
    (copy / "docs").mkdir()
    (copy / "docs" / "tokenizer.json").write_text("{}")
    whole, other = (identify_model(m)["model"] for m in (MODEL, copy))
    bare = {"files": {n: d for n, d in whole["files"].items() if not is_tokenizer_file(n)}}
    assert is_same_model(whole, other) and is_same_model(bare, whole)
    assert "docs/tokenizer.json" not in other["files"] and not is_tokenizer_file("docs/tokenizer.json")


def test_a_model_is_its_content_with_and_without_a_manifest(tmp_path: Path) -> None:
    named = shutil.copytree(MODEL, tmp_path / "named")
    Manifest("model", "tiny", inputs={"repo": "a/b", "revision": "c" * 40}).write(named)
    first, second = (identify_model(m)["model"] for m in (MODEL, named))
    assert first != second and is_same_model(first, second)
    (named / "tokenizer.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"changed since it was made: tokenizer\.json changed"):
        identify_model(named)


def test_a_checkpoint_of_an_earlier_enginix_is_told_what_it_lacks(
    stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = {"headerSha256": "0" * 64, "size": 5}
    model = {"files": {"config.json": {"sha256": "0" * 64}, "model.safetensors": header}}
    edit_manifest(stages.checkpoint, lambda m: m["inputs"].update(model=model))
    age_manifest(stages.checkpoint)
    words = ["build", str(stages.checkpoint), "--kind", "reference", "--model", str(MODEL), "--no-gates"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 3
    told = capsys.readouterr().err
    assert "by an earlier enginix" in told and "make the checkpoint again from this model" in told


def test_artefacts_without_digests_are_told_of_and_taken(
    stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    age_manifest(stages.engine)
    require_unchanged(stages.engine)
    assert "note: " in (told := capsys.readouterr().err) and "of an earlier enginix" in told
    assert main(["check", str(stages.engine)]) == 0
    assert main(["triton-repo", str(stages.engine), "-o", str(tmp_path / "repository")]) == 0
    capsys.readouterr()
    assert main(["verify", str(stages.engine)]) == 3
    assert "build it again with this enginix" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["before the weights", "in the middle"])
def test_a_model_that_changes_while_it_is_converted(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(MODEL, tmp_path / "source")
    path = source / "model.safetensors"
    write_ranks = conversion.write_ranks

    def overwrite(*words: Any, **named: Any) -> int:
        size = path.stat().st_size
        times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)

        def damage() -> None:
            with path.open("r+b") as f:
                f.seek(size // 2)
                f.write(b"\x3f" * 1000)
            os.utime(path, ns=times)

        if when == "in the middle":
            thread = threading.Thread(target=damage)
            thread.start()
            done = write_ranks(*words, **named)
            thread.join()
            return done
        damage()
        return write_ranks(*words, **named)

    monkeypatch.setattr(conversion, "write_ranks", overwrite)
    assert main(["convert", str(source), "-o", str(tmp_path / "out")]) == 3
    assert not (tmp_path / "out").exists()


def test_a_changed_checkpoint_makes_no_engine(
    stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stages.checkpoint / "rank0.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    words = ["build", str(stages.checkpoint), "--kind", "reference", "--model", str(MODEL), "--no-gates"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 3
    assert "rank0.safetensors changed" in capsys.readouterr().err and not (tmp_path / "out").exists()


KEYS = st.sampled_from(
    ["format", "digest", "files", "artefact", "name", "kind", "model", "inputs", "results"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(KEYS | st.text(max_size=5), VALUES, max_size=5) | VALUES)
def test_any_json_is_a_manifest_or_refused(tmp_path: Path, raw: Any) -> None:
    whole_one = {"format": 2, "digest": "0" * 64, "files": {}, "artefact": "model", "name": "m"}
    for content in (raw, {**whole_one, **raw} if isinstance(raw, dict) else raw):
        (tmp_path / "enginix.json").write_text(json.dumps(content))
        try:
            found = read_manifest(tmp_path)
        except ManifestError:
            continue
        assert found.artefact == "model" or found.artefact == raw["artefact"]
        with pytest.raises(ManifestError, match="its digest differs"):
            require_whole_manifest(tmp_path)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "enginix.json").write_bytes(content)
    with pytest.raises(ManifestError):
        read_manifest(tmp_path)


@given(st.data())
def test_any_changed_byte_of_a_manifest_is_refused(
    whole: Stages, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray((whole.checkpoint / "enginix.json").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "enginix.json").write_bytes(content)
    with pytest.raises(EnginixError):
        require_whole_manifest(tmp_path)


def test_signatures_are_no_part_of_an_artefact(stages: Stages) -> None:
    for name in (manifest.SIGNATURE_FILE, manifest.STATEMENT_FILE):
        (stages.engine / name).write_text("x")
    assert check_artefact(stages.engine).is_listed
    again = read_manifest(stages.engine)
    assert again.write(stages.engine).files == again.files


def test_digests_that_are_known_are_not_computed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    known = {"a.json": ContentDigest("1" * 64, 2), "not there": ContentDigest("2" * 64, 2)}
    assert Manifest("model", "m").write(tmp_path, known).files == {"a.json": known["a.json"]}


@pytest.mark.parametrize("key", ["results", "artefact"])
def test_a_key_that_appears_twice_is_refused(tmp_path: Path, key: str) -> None:
    """The last one counts here, and another reader may take the first."""
    Manifest("engine", "tiny", results={"gates": "not gated"}).write(tmp_path)
    path = tmp_path / "enginix.json"
    entry = json.dumps({"results": {"gates": {"logits": "passed"}}, "artefact": "engine"}[key])
    path.write_text(path.read_text().replace("{", f'{{"{key}": {entry}, ', 1))
    with pytest.raises(ManifestError, match="a key appears twice"):
        read_manifest(tmp_path)
