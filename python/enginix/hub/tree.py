"""Fetch a whole commit, as a git-lfs clone without ``.git`` has it.

Each file is verified: large ones against the sha256 of the listing, small ones against git's name of their
content. The Hub's interface does not show executable bits and symbolic links, so every file is written as a
plain one; nearly all model repositories have plain files only.
"""

from __future__ import annotations

from pathlib import Path

from enginix.errors import LockError
from enginix.hub import api, paths
from enginix.hub.fetch import JOBS, FetchResult, fetch_files, require_commit
from enginix.hub.transfer import FileDigest


def fetch_tree(repo: str, commit: str, out: Path, jobs: int = JOBS) -> FetchResult:
    """Fetch every file of a commit into the new directory ``out``; leave nothing on failure.

    Raises:
        LockError: the listing has a path that may not be written.
        HubError, HashMismatch, MachineError, UsageError: as :func:`fetch.fetch_locked_files`.
    """
    require_commit(repo, commit)
    listing = api.list_files(repo, commit)
    for f in listing:
        # A clone may contain enginix.json as an ordinary file, so it is fetched, too.
        if (why := paths.find_path_problem(f.path)) and why != paths.MANIFEST_NAME_PROBLEM:
            raise LockError(f"path {ascii(f.path)[:100]} {why}", where=repo, fix="do not use this repository")
    if both := paths.find_path_clash(f.path for f in listing):
        raise LockError(
            f"{both[0]!a} and {both[1]!a} cannot both exist where case does not count",
            where=repo,
            fix="lock the files that you need with `enginix lock --exclude`",
        )
    expected_files = [
        FileDigest(f.path, f.size, "sha256", f.sha256)
        if f.sha256
        else FileDigest(f.path, f.size, "git", f.oid)
        for f in listing
    ]
    return fetch_files(repo, commit, expected_files, out, jobs=jobs, keep=False)
