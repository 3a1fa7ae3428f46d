"""enginix pin: which files a flake's directory and a checkout get; the Hub is the server of tests/hub."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from enginix.cli import main
from enginix.registry import pin as registry
from hub import Hub

MODEL = Path(__file__).parents[2] / "models" / "tiny-qwen3"
CATALOGUE = {
    "big-nvfp4": {"repo": "nvidia/Big-NVFP4", "revision": None, "locked": False, "runtime": "trtllm-1.2.1"},
    "small": {"repo": "acme/Small", "revision": None, "locked": True, "runtime": None},
}


@pytest.fixture
def pinned_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """A registry's stand-in: what was asked of it."""
    asked: list[tuple[object, ...]] = []

    def pin_image(*arguments: object) -> dict[str, object]:
        asked.append(arguments)
        return {"runtime": arguments[0]}

    monkeypatch.setattr(registry, "pin_image", pin_image)
    monkeypatch.setattr(registry, "require_crane", lambda: "crane")
    (tmp_path / "catalogue.json").write_text(json.dumps(CATALOGUE))
    monkeypatch.setenv("ENGINIX_CATALOGUE", str(tmp_path / "catalogue.json"))
    return asked


def test_files_of_a_flake_and_of_a_checkout(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pinned_images: list[tuple[object, ...]],
) -> None:
    def pin(directory: Path, *words: str) -> tuple[int, list[str]]:
        code = main(["pin", *words, "--directory", str(directory), "--json"])
        answer = json.loads(capsys.readouterr().out)
        return code, answer.get("written", answer.get("fix"))

    own, checkout = tmp_path / "own", tmp_path / "checkout"
    own.mkdir()
    (checkout / "nix/catalogue").mkdir(parents=True)
    (checkout / "nix/catalogue/entries.nix").touch()
    with Hub({"nvidia/Big-NVFP4": MODEL, "acme/Small": MODEL, "acme/Other-1.5": MODEL}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        files = ["big-nvfp4.lock.json", "flake.nix", "trtllm-1.2.1.pin.json"]
        # A model of the catalogue by its repository, too; what is there is kept.
        assert pin(own, "nvidia/Big-NVFP4") == (0, files) and len(pinned_images) == 1
        assert pin(own, "big-nvfp4") == (0, []) and len(pinned_images) == 1
        assert "mkPinned" in (own / "flake.nix").read_text()
        assert pin(own, "acme/Other-1.5") == (0, ["other-1_5.lock.json", "other-1_5.engine.json"])
        assert json.loads((own / "other-1_5.engine.json").read_text()) == {"kind": "reference"}
        assert pin(checkout, "big-nvfp4", "--no-runtime") == (0, ["nix/catalogue/big-nvfp4.lock.json"])
        code, fix = pin(own, "big-nvfp")
        assert code == 2 and "did you mean big-nvfp4?" in fix
        for words in (["small", "--target", "h200"], ["acme/Other-1.5", "--kind", "llmapi"], ["none"]):
            assert pin(own, *words)[0] == 2
        # The same file would pin another repository.
        (own / "other-1_5.lock.json").write_text((own / "big-nvfp4.lock.json").read_text())
        assert pin(own, "acme/Other-1.5")[0] == 2


def test_what_is_there_is_kept_and_a_failure_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ENGINIX_CATALOGUE", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    words = ["pin", "acme/Small", "--directory", str(tmp_path), "--system", "x86_64-linux"]
    engine = tmp_path / "small.engine.json"
    edited = '{"kind":"reference","gates":{"perplexity":{"ratio":1.02}}}'
    with Hub({"acme/Small": MODEL}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        # No crane on the PATH.
        assert main([*words, "--target", "h200"]) == 5 and not list(tmp_path.iterdir())
        assert "--no-runtime" in capsys.readouterr().err
        assert main(words) == 0
        engine.write_text(edited)
        assert main(words) == 0 and engine.read_text() == edited
        before = sorted(tmp_path.iterdir())
        assert main([*words, "--target", "h200", "--no-runtime"]) == 2
        assert "not 'tensorrt'" in capsys.readouterr().err
        # Of a kept engine the runtime is pinned, too: its image is needed first.
        for runtime in ("", ',"runtime":"trtllm-1.2.1"'):
            engine.write_text(f'{{"kind":"tensorrt","target":"h200"{runtime}}}')
            assert main(words) == 5 and sorted(tmp_path.iterdir()) == before


def test_next_lines_work_from_where_the_user_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pinned_images: list[tuple[object, ...]],
) -> None:
    def pin(*words: str) -> list[str]:
        assert main(["pin", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line.removeprefix("next: ") for line in lines if line.startswith("next: ")]

    flake = tmp_path / "a flake"
    flake.mkdir()
    monkeypatch.chdir(tmp_path)
    with Hub({"nvidia/Big-NVFP4": MODEL, "acme/Small": MODEL}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        # Without git there is nothing to add.
        assert pin("small", "--directory", str(flake)) == [f"nix build '{flake}'#small-engine"]
        subprocess.run(["git", "init", "-q", str(flake)], check=True)
        (flake / "small.lock.json").unlink()
        add, _ = pin("small", "--directory", str(flake))
        subprocess.run(["bash", "-c", add], check=True)
        words = ["git", "-C", str(flake), "diff", "--cached", "--name-only"]
        staged = subprocess.run(words, capture_output=True, check=True)
        assert staged.stdout == b"small.lock.json\n"
        monkeypatch.chdir(flake)
        # Nothing can be built before the image is pinned.
        [add, again] = pin("big-nvfp4", "--no-runtime")
        subprocess.run(["bash", "-c", add], check=True)
        assert again == "enginix pin big-nvfp4"
        assert pin(*again.split()[2:])[-1] == "nix build .#big-nvfp4-engine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "t4"], "kind tensorrt runs on SM"),
        (["--target", "jetson-thor"], "kind tensorrt runs on SM"),
        (["--target", "h200", "--runtime", "trtllm-1.4.0rc1"], "has no kind tensorrt"),
        (["--target", "vr200", "--kind", "llmapi"], "from TensorRT-LLM 1.4.0rc0 on"),
        (["--target", "a16"], "the memory of a16 is not in the table"),
        (["--target", "h200", "--runtime", "{described}", "--kind", "llmapi"], "describes a runtime"),
    ],
)
def test_what_evaluation_refuses_is_not_pinned(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pinned_images: list[tuple[object, ...]],
    words: list[str],
    said: str,
) -> None:
    described = tmp_path / "described.json"
    described.write_text(
        '{"like": "trtllm-1.4.0rc1", "image": "a.b/c:1.4.0rc2", "versions": {"tensorrtLlm": "1.4.0rc2"}}'
    )
    own = tmp_path / "own"
    own.mkdir()
    chosen = [word.format(described=described) for word in words]
    assert main(["pin", "acme/Small-2", *chosen, "--directory", str(own)]) == 2
    assert said in capsys.readouterr().err
    assert list(own.iterdir()) == [] and pinned_images == []
