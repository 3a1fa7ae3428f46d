"""What `enginix reference` leaves: other users read it, as the builders of Nix are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from enginix.cli import main
from manifests import edit_manifest

Told = pytest.CaptureFixture[str]


def test_other_users_can_read_the_answers(recorded_answers: Path) -> None:
    folders = [path for path in (recorded_answers, *recorded_answers.rglob("*")) if path.is_dir()]
    assert len(folders) == 2 and all(folder.stat().st_mode & 0o555 == 0o555 for folder in folders)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in recorded_answers.rglob("*"))


@pytest.mark.parametrize("name", ["answers.json", "logits.safetensors", "model/tokenizer_config.json"])
def test_answers_that_changed_judge_nothing(
    recorded_answers: Path, checkpoint: Path, model: Path, tmp_path: Path, name: str, capsys: Told
) -> None:
    changed = shutil.copytree(recorded_answers, tmp_path / "answers")
    assert main(["verify", str(changed), "--from", str(model)]) == 0
    (changed / "enginix.json").rename(tmp_path / "enginix.json")
    words = ["gate", str(checkpoint), "--reference", str(changed), "--model", str(model)]
    assert main([*words, "--gates", '{"files": {}}']) == 3
    assert "no enginix.json" in capsys.readouterr().err
    (tmp_path / "enginix.json").rename(changed / "enginix.json")
    edit_manifest(changed, lambda m: m["inputs"]["model"]["files"].update({"model.safetensors": "0" * 64}))
    assert main([*words, "--gates", '{"files": {}}']) == 1
    assert "answers of a model with digest" in capsys.readouterr().err
    content = (changed / name).read_bytes()
    (changed / name).write_bytes(content.replace(b"1", b"2", 1))
    words = ["gate", str(checkpoint), "--reference", str(changed), "--model", str(model)]
    assert main([*words, "--gates", '{"files": {}}']) == 3
    assert f"changed since it was made: {name} changed" in capsys.readouterr().err
