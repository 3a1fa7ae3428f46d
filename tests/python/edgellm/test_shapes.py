"""Shapes of published models: each is exported and passes every check, or is refused by name.

The judge of what passes is NVIDIA's exporter.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from enginix.kinds.edgellm.source import read_export_source

from . import model_shapes
from .conftest import Run, refuse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for graphs of networks that several shapes share."""
    return tmp_path_factory.mktemp("graphs")


@pytest.mark.parametrize("name", model_shapes.EXPORTED)
def test_a_healthy_shape_is_exported(name: str, run_export: Run, graphs: Path, tmp_path: Path) -> None:
    model = tmp_path / name
    model_shapes.make(model, **model_shapes.EXPORTED[name])
    assert read_export_source(model).weights.tensors
    done = run_export(model, "-o", tmp_path / "export", ENGINIX_TEST_GRAPHS=str(graphs))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "export/enginix.json").is_file()


@pytest.mark.parametrize("name", model_shapes.REFUSED)
def test_a_shape_that_an_export_cannot_express_is_refused(name: str, run_export: Run, tmp_path: Path) -> None:
    words, arguments = model_shapes.REFUSED[name]
    model_shapes.make(tmp_path / name, **arguments)
    refuse(tmp_path / name, *words)
    out = tmp_path / "export"
    done = run_export(tmp_path / name, "-o", out)
    assert done.returncode == 3 and all(word in done.stderr for word in words), done.stderr
    assert str(out) not in done.stderr and not out.exists()
