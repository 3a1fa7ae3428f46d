"""What dockerTools.streamLayeredImage makes, for the stand-in package set: a container image as a stream.

stream-image.py SPEC.json writes an archive as `docker save` has it: manifest.json, the configuration, and a
layer for each store path with the extra files last. What lies outside of the store (the /usr and /opt of this
package set) is not in it.
"""

import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path


def entry(info: tarfile.TarInfo) -> tarfile.TarInfo:
    # As nixpkgs: one second after the epoch, owned by root, so that the bytes are the content's.
    info.mtime, info.uid, info.gid, info.uname, info.gname = 1, 0, 0, "", ""
    return info


def add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = entry(tar.gettarinfo(path, name))
    if info.islnk():  # the store may hard-link equal files
        info.type, info.linkname, info.size = tarfile.REGTYPE, "", path.stat().st_size
    if info.isreg():
        with path.open("rb") as file:
            tar.addfile(info, file)
    else:
        tar.addfile(info)
    if info.isdir():
        for child in sorted(os.listdir(path)):
            add(tar, path / child, f"{name}/{child}")


def layer(paths: list[Path]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in ("nix", "nix/store"):
            info = entry(tarfile.TarInfo(folder))
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for path in paths:
            add(tar, path, str(path).lstrip("/"))
    return out.getvalue()


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    paths = sorted(Path(p) for p in spec["closure"])
    most = spec["maxLayers"] - 1
    groups = [[p] for p in paths[: most - 1]] + ([paths[most - 1 :]] if paths[most - 1 :] else [])
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as out:

        def write(name: str, data: bytes) -> None:
            info = entry(tarfile.TarInfo(name))
            info.size, info.mode = len(data), 0o644
            out.addfile(info, io.BytesIO(data))

        digests = []
        # One in memory at a time.
        for group in [*groups, None]:
            data = layer(group) if group is not None else Path(spec["extra"]).read_bytes()
            digests.append(hashlib.sha256(data).hexdigest())
            write(f"{digests[-1]}/layer.tar", data)
        config = {
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:01+00:00",
            "config": spec["config"],
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{d}" for d in digests]},
            "history": [{"created": "1970-01-01T00:00:01+00:00"} for _ in digests],
        }
        text = json.dumps(config, sort_keys=True).encode()
        name = f"{hashlib.sha256(text).hexdigest()}.json"
        write(name, text)
        write(
            "manifest.json",
            json.dumps(
                [{"Config": name, "RepoTags": [spec["tag"]], "Layers": [f"{d}/layer.tar" for d in digests]}]
            ).encode(),
        )


if __name__ == "__main__":
    main()
