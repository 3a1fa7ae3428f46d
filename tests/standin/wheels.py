"""Stand-ins for the wheels of Triton's Python bindings: zips with a package that says what it is."""

import sys
import zipfile
from pathlib import Path

out = Path(sys.argv[1])
for name in ("tritonserver", "tritonfrontend"):
    with zipfile.ZipFile(out / f"{name}-0.0.0-py3-none-any.whl", "w") as archive:
        # A time of its own for each build would be another store path.
        for path, text in (
            (f"{name}/__init__.py", '"""Stand-in."""\n\nSTANDIN = True\n'),
            (f"{name}-0.0.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.0\n"),
        ):
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), text)
