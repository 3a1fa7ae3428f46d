"""What `enginix reference` leaves: other users read it, as the builders of Nix are."""

from __future__ import annotations

from pathlib import Path

from enginix.cli import main

MODEL = Path(__file__).parents[2] / "models" / "tiny-qwen3"


def test_other_users_can_read_the_answers(tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    assert main(["reference", str(MODEL), "-o", str(answers)]) == 0
    folders = [path for path in (answers, *answers.rglob("*")) if path.is_dir()]
    assert len(folders) == 2 and all(folder.stat().st_mode & 0o555 == 0o555 for folder in folders)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in answers.rglob("*"))
