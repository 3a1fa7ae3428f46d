"""Looks at a container image's archive (docker save) as a registry would, and unpacks it.

image.py unpack ARCHIVE ROOT     every digest and size is checked first; beside it go the words of the
                                 entry point and of the health check, a word a line: ROOT.words, ROOT.probe
"""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path


def read(archive: Path) -> tuple[dict, list[bytes]]:
    with tarfile.open(archive) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}
    (manifest,) = json.loads(files["manifest.json"])
    assert set(manifest) == {"Config", "RepoTags", "Layers"}, manifest.keys()
    assert all(":" in tag for tag in manifest["RepoTags"])
    text = files[manifest["Config"]]
    assert manifest["Config"] == f"{hashlib.sha256(text).hexdigest()}.json", "the configuration's digest"
    config = json.loads(text)
    layers = [files[name] for name in manifest["Layers"]]
    found = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    assert config["rootfs"] == {"type": "layers", "diff_ids": found}, "the layers' digests"
    assert len(config["history"]) == len(layers)
    assert not set(files) - {"manifest.json", manifest["Config"], *manifest["Layers"]}, "a file of nobody"
    assert config["os"] == "linux" and config["architecture"] == "amd64"
    return config["config"], layers


def unpack(archive: Path, root: Path) -> None:
    config, layers = read(archive)
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            for member in tar.getmembers():
                assert (member.uid, member.gid, member.mtime) == (0, 0, 1), f"{member.name}: owner or time"
                assert not member.mode & 0o6000, f"{member.name}: set-user-id"
            tar.extractall(root, filter="fully_trusted")
    user = config["User"].split(":")[0]
    assert user.isdigit() and user != "0", "root, or a name that Kubernetes cannot judge"
    assert (root / config["Entrypoint"][0].lstrip("/")).exists(), "the entry point is not in the image"
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    for ending, words in ((".words", config["Entrypoint"]), (".probe", config["Healthcheck"]["Test"][1:])):
        root.with_suffix(ending).write_text("".join(f"{word}\n" for word in words))


if __name__ == "__main__":
    unpack(Path(sys.argv[2]), Path(sys.argv[3]))
