from pathlib import Path

from enginix import manifest


def test_the_manifests_name_comes_first(tmp_path: Path) -> None:
    manifest.Manifest(artefact="model", name="tiny").write(tmp_path)
    assert manifest.read_artefact_name(tmp_path) == "tiny"


def test_a_store_hash_is_no_part_of_a_name(tmp_path: Path) -> None:
    # A name that held the hash kept the model's weights in the closure of its checkpoint.
    store_path = tmp_path / "qq8x6bjr3k2wvilqc1l7chivcyg6wj5h-tiny-model"
    store_path.mkdir()
    assert manifest.read_artefact_name(store_path) == "tiny-model"


def test_other_names_stay(tmp_path: Path) -> None:
    for name in ("tiny-qwen3", "a-b", "e" * 32 + "-e-is-no-digit-of-nix"):
        (tmp_path / name).mkdir()
        assert manifest.read_artefact_name(tmp_path / name) == name
