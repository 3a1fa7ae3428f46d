"""What `enginix reference` leaves: other users read it, as the builders of Nix are."""

from __future__ import annotations

from pathlib import Path


def test_other_users_can_read_the_answers(recorded_answers: Path) -> None:
    folders = [path for path in (recorded_answers, *recorded_answers.rglob("*")) if path.is_dir()]
    assert len(folders) == 2 and all(folder.stat().st_mode & 0o555 == 0o555 for folder in folders)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in recorded_answers.rglob("*"))
