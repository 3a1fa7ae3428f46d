"""A golden model of each family, and copies of them with other keys, names or tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from family_golden import list_family_conversions

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.model.family_rows import list_family_rows

# A model of each family, out of the golden data.
MODELS: dict[str, Path] = {}
for _case in list_family_conversions():
    _name = json.loads((_case.model / "config.json").read_text())["architectures"][0]
    if _name in list_family_rows() and _case.label == "tp2-float16" and _case.defect is None:
        MODELS.setdefault(_name, _case.model)


def change_config(name: str, tmp_path: Path, **keys: Any) -> Path:
    """Return a copy of a family's golden model, its weights linked, with other keys."""
    model = tmp_path / "model"
    model.mkdir(parents=True)
    for path in MODELS[name].iterdir():
        if path.name != "config.json":
            (model / path.name).symlink_to(path)
    raw = json.loads((MODELS[name] / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(raw | keys))
    return model


def compare_conversions(source: Path, config: dict[str, Any], keys: dict[str, Any], work: Path) -> None:
    """Convert a model under another config.json; only the architecture's name and ``keys`` may differ."""
    renamed = work / "renamed"
    renamed.mkdir()
    (renamed / "config.json").write_text(json.dumps(config))
    (renamed / "model.safetensors").symlink_to(source / "model.safetensors")
    for model, out in ((source, work / "one"), (renamed, work / "other")):
        convert_model(model, out, ConvertOptions(mapping=CheckpointMapping(2), kind="tensorrt"))
    for rank in range(2):
        ranks = [(work / d / f"rank{rank}.safetensors").read_bytes() for d in ("one", "other")]
        assert ranks[0] == ranks[1]
    configs = [json.loads((work / d / "config.json").read_text()) for d in ("one", "other")]
    assert configs[1].pop("architecture") != configs[0].pop("architecture")
    assert configs[0] | keys == configs[1]


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    data = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
