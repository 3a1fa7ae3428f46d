"""What can be compared exactly is compared exactly: engines that were changed, each of which once passed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.errors import GateError
from enginix.evaluation.judgement import model_files, model_weights, quality
from enginix.evaluation.judgement.positions import judge_positions
from enginix.evaluation.judgement.suite import EngineRuns
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers.answers import ReferenceAnswers
from enginix.evaluation.reference_answers.material import Material, load_material, sample_positions
from enginix.evaluation.reference_answers.subject import ExecutorSubject, TransformersSubject
from enginix.model.tokenizer_files import copy_tokenizer_files
from enginix.reference.executor import Executor
from enginix.triton.models.detokenizer import load_tokenizer
from tiny_model import Tensors, damaged

Change = Callable[[Path], object]


def edit(path: Path, change: Callable[[Any], object]) -> None:
    raw = json.loads(path.read_text("utf-8"))
    change(raw)
    path.write_text(json.dumps(raw, ensure_ascii=False), "utf-8")


def exchange_pieces(directory: Path, *pairs: tuple[int, int]) -> None:
    def change(raw: Any) -> None:
        vocabulary = raw["model"]["vocab"]
        words = sorted(vocabulary, key=vocabulary.get)
        for a, b in pairs:
            vocabulary[words[a]], vocabulary[words[b]] = vocabulary[words[b]], vocabulary[words[a]]

    edit(directory / "tokenizer.json", change)


def wrap_template(directory: Path, before: str, after: str = "") -> None:
    path = directory / "chat_template.jinja"
    path.write_text(before + path.read_text("utf-8") + after, "utf-8")


UPPER = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
# Name → change of a directory of tokenizer files, and what the verdict names.
FILES: dict[str, tuple[Change, str]] = {
    "two rare pieces exchanged": (lambda d: exchange_pieces(d, (1990, 1991)), "vocabulary: 2 entries"),
    "100 pieces exchanged": (
        lambda d: exchange_pieces(d, *((n, n + 1) for n in range(300, 400, 2))),
        "vocabulary: 100 entries",
    ),
    "merges in another order": (
        lambda d: edit(d / "tokenizer.json", lambda r: r["model"]["merges"].sort(key=str)),
        "model of the tokenizer",
    ),
    "no normalisation": (
        lambda d: edit(d / "tokenizer.json", lambda r: r.update(normalizer=None)),
        "normalizer",
    ),
    "another end token in the generation defaults": (
        lambda d: edit(d / "generation_config.json", lambda r: r.update(eos_token_id=1999)),
        "end tokens of the generation_config.json: [1999]",
    ),
    "one of two end tokens lost": (
        lambda d: edit(d / "generation_config.json", lambda r: r.update(eos_token_id=[2])),
        "[2], the model's [2, 0]",
    ),
    "sampling defaults": (
        lambda d: edit(d / "generation_config.json", lambda r: r.update(temperature=1.9, do_sample=True)),
        "temperature is 1.9",
    ),
    "another end token of the tokenizer": (
        lambda d: edit(d / "tokenizer_config.json", lambda r: r.update(eos_token="<|im_start|>")),
        "special tokens",
    ),
    "a template of upper-case letters": (
        lambda d: (d / "chat_template.jinja").write_text(UPPER),
        "chat template",
    ),
    "a template that differs for two messages": (
        lambda d: wrap_template(d, "{%- if messages|length > 1 -%}IGNORE{%- else -%}", "{%- endif -%}"),
        "'system message' has other tokens",
    ),
    "a template that differs for tools": (
        lambda d: wrap_template(d, "{%- if tools -%}IGNORE{%- endif -%}"),
        "'tools' has other tokens",
    ),
    "a template that differs for nine messages": (
        lambda d: wrap_template(d, "{%- if messages|length > 8 -%}IGNORE{%- endif -%}"),
        "chat template",
    ),
    "no template": (lambda d: (d / "chat_template.jinja").unlink(), "chat template"),
    "configuration beside the tokenizer": (
        lambda d: (d / "config.json").write_text('{"model_type": "llama"}'),
        "config.json is no file of a tokenizer",
    ),
    "another file of a tokenizer": (lambda d: (d / "vocab.json").write_text("{}"), "vocab.json"),
}  # fmt: skip

# What transformers passes over in these files, and a server or an earlier release reads.
PASSED_OVER: dict[str, tuple[Change, str]] = {
    "another template beside the one that counts": (
        lambda d: edit(d / "tokenizer_config.json", lambda r: r.update(chat_template=UPPER)),
        "another chat template 'default'",
    ),
    "a template for tools in a list": (
        lambda d: edit(
            d / "tokenizer_config.json",
            lambda r: r.update(chat_template=[{"name": "tool_use", "template": UPPER}]),
        ),
        "another chat template 'tool_use'",
    ),
    "a template of processors": (
        lambda d: (d / "chat_template.json").write_text(json.dumps({"chat_template": UPPER})),
        "another chat template 'default'",
    ),
    "special tokens that are plain": (
        lambda d: edit(
            d / "tokenizer.json", lambda r: [t.update(special=not t["special"]) for t in r["added_tokens"]]
        ),
        "other flags of added tokens",
    ),
    "a file of added tokens": (
        lambda d: (d / "added_tokens.json").write_text('{"zebra": 1500}'),
        "added_tokens.json: 'zebra' is 1500",
    ),
    "another map of special tokens": (
        lambda d: edit(d / "special_tokens_map.json", lambda r: r.update(eos_token="<|im_start|>")),
        "special_tokens_map.json: eos_token",
    ),
    "a token before each text": (
        lambda d: edit(d / "tokenizer_config.json", lambda r: r.update(add_bos_token=True)),
        "add_bos_token is True",
    ),
    "a space before each text": (
        lambda d: edit(d / "tokenizer_config.json", lambda r: r.update(add_prefix_space=True)),
        "add_prefix_space is True",
    ),
    "code of a stranger": (
        lambda d: edit(
            d / "tokenizer_config.json", lambda r: r.update(auto_map={"AutoTokenizer": ["x.Y", None]})
        ),
        "auto_map is",
    ),
    "a template that reads the date": (
        lambda d: wrap_template(d, "{%- if strftime_now('%Y')|int > 2030 -%}IGNORE{%- endif -%}"),
        "chat template",
    ),
    "another normalizer of a rare letter": (
        lambda d: edit(
            d / "tokenizer.json",
            lambda r: r.update(
                normalizer={"type": "Replace", "pattern": {"String": "\u16a0"}, "content": "x"}
            ),
        ),
        "normalizer",
    ),
}


# What the model's files have, and the engine's lack; the first three are passed over by transformers.
LACKING: dict[str, tuple[Change, str]] = {
    "a template of processors": (
        PASSED_OVER["a template of processors"][0],
        "the model's another chat template",
    ),
    "added tokens": (PASSED_OVER["a file of added tokens"][0], "the model's added_tokens.json: 'zebra'"),
    "special tokens": (
        PASSED_OVER["another map of special tokens"][0],
        "the model's special_tokens_map.json: eos_token",
    ),
    "a token before each text": (PASSED_OVER["a token before each text"][0], "add_bos_token is None"),
    "a template for tools": (PASSED_OVER["a template for tools in a list"][0], "chat template"),
    "another file of a tokenizer": (lambda d: (d / "tekken.json").write_text("{}"), "tekken.json"),
}


@pytest.fixture
def own_files(model: Path, tmp_path: Path) -> Path:
    copy_tokenizer_files(model, tmp_path / "files")
    return tmp_path / "files"


def test_the_models_own_files_pass(own_files: Path, model: Path) -> None:
    outcome = model_files.judge_files(own_files, model, (2, 0), {})
    assert outcome.passed and outcome.detail["writtenAnew"] == [], outcome.summary


def test_files_that_a_tool_wrote_anew_pass(own_files: Path, model: Path, tmp_path: Path) -> None:
    """As quantization tools do it: by save_pretrained, with another order and other keys."""
    import transformers

    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(own_files)
    edit(own_files / "generation_config.json", lambda raw: raw.update(transformers_version="9.9"))
    # As earlier releases of transformers do: the template in a list, defaults written out, every added token.
    template = (model / "chat_template.jinja").read_text()
    edit(
        own_files / "tokenizer_config.json",
        lambda raw: raw.update(
            chat_template=[{"name": "default", "template": template}], add_prefix_space=False
        ),
    )
    added = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    (own_files / "added_tokens.json").write_text(json.dumps({row["content"]: row["id"] for row in added}))
    outcome = model_files.judge_files(own_files, model, None, {})
    assert outcome.passed and outcome.detail["writtenAnew"], outcome.summary


@pytest.mark.parametrize("name", [*FILES, *PASSED_OVER])
def test_changed_files_fail(own_files: Path, model: Path, name: str) -> None:
    change, says = (FILES | PASSED_OVER)[name]
    change(own_files)
    outcome = model_files.judge_files(own_files, model, (2, 0), {})
    assert not outcome.passed and says in "\n".join(outcome.detail["faults"]), outcome.detail["faults"]


@pytest.mark.parametrize("name", LACKING)
def test_files_that_lack_what_the_model_has_fail(
    own_files: Path, model: Path, tmp_path: Path, name: str
) -> None:
    change, says = LACKING[name]
    change(copied := shutil.copytree(model, tmp_path / "model"))
    outcome = model_files.judge_files(own_files, copied, (2, 0), {})
    assert not outcome.passed and says in "\n".join(outcome.detail["faults"]), outcome.detail["faults"]


def test_truncation_and_padding_change_no_text_that_is_read(own_files: Path, model: Path) -> None:
    """A tool that cut its calibration text leaves them in tokenizer.json; each reader sets its own."""
    pieces = Tokenizer.from_file(str(own_files / "tokenizer.json"))
    pieces.enable_truncation(8)
    pieces.enable_padding(length=4096)
    pieces.save(str(own_files / "tokenizer.json"))
    text = "The quick brown fox jumps over the lazy dog. " * 20
    expected = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids
    assert len(pieces.encode(text).ids) == 4096 and 8 < len(expected) < 4096
    assert load_tokenizer(own_files).encode(text).ids == expected
    read = hf.TransformersTokenizer(own_files)
    assert read.encode(text) == expected
    question = hf.TransformersTokenizer(model).encode_question(text)
    assert len(question) > len(expected) and read.encode_question(text) == question
    assert model_files.judge_files(own_files, model, None, {}).passed


def test_end_tokens_of_the_manifest_are_compared(own_files: Path, model: Path) -> None:
    outcome = model_files.judge_files(own_files, model, (0, 2), {})
    assert not outcome.passed and "end tokens of the manifest: [0, 2]" in outcome.summary


def test_a_directory_without_tokenizer_fails(model: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="no tokenizer"):
        model_files.judge_files(tmp_path, model, None, {})


@pytest.fixture(scope="module")
def sound(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint as the model is, and one that is quantized row by row."""
    out = tmp_path_factory.mktemp("sound")
    convert_model(model, out / "plain", ConvertOptions())
    convert_model(model, out / "fp8", ConvertOptions(quantize="FP8_PER_CHANNEL_PER_TOKEN"))
    return {"plain": out / "plain", "fp8": out / "fp8"}


def judge(checkpoint: Path, model: Path) -> Any:
    return model_weights.judge_weights(checkpoint, {"the model": model}, {"steps": 1.0})


DENSE = "transformer.layers.2.attention.dense"
FC, QKV = "transformer.layers.2.mlp.fc", "transformer.layers.2.attention.qkv"


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def zero_head(tensors: Tensors, layer: int, head: int) -> None:
    name = f"transformer.layers.{layer}.attention.dense.weight"
    size = 16 if tensors[name].dtype is torch.uint8 else 32  # NVFP4 has two columns in a byte
    raw_bytes(tensors[name])[:, head * size : (head + 1) * size] = 0


def exchange_rows(tensors: Tensors, name: str, a: slice, b: slice) -> None:
    rows = raw_bytes(tensors[name])
    rows[a], rows[b] = rows[b].clone(), rows[a].clone()


def exchange_key_heads(tensors: Tensors) -> None:
    # Of 512 outputs; INT4 has two of them in a byte.
    size = 32 * len(tensors[f"{QKV}.weight"]) // 512
    exchange_rows(tensors, f"{QKV}.weight", slice(8 * size, 9 * size), slice(9 * size, 10 * size))


def copy_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("transformer.layers.1.mlp.fc.")]:
        tensors[name.replace(".1.", ".2.")] = tensors[name].clone()


def roll_norm(tensors: Tensors) -> None:
    name = "transformer.layers.1.attention.q_layernorm.weight"
    tensors[name] = tensors[name].roll(1)


WEIGHTS: dict[str, Callable[[Tensors], object]] = {
    "layer 2 head 5 zeroed": lambda t: zero_head(t, 2, 5),
    "layer 3 head 7 zeroed": lambda t: zero_head(t, 3, 7),
    "embeddings of two rare ids exchanged": lambda t: exchange_rows(
        t, "transformer.vocab_embedding.weight", slice(1500, 1501), slice(1501, 1502)
    ),
    "two key heads exchanged": exchange_key_heads,
    "another layer's matrix": copy_layer,
    "one norm × 1.02": lambda t: t["transformer.layers.0.post_layernorm.weight"].mul_(1.02),
    "a norm of queries rolled": roll_norm,
    "one value of the head": lambda t: t["lm_head.weight"][7, 7].add_(1),
    "NaN in one embedding": lambda t: t["transformer.vocab_embedding.weight"][1999].fill_(float("nan")),
}  # fmt: skip


@pytest.mark.parametrize("form", ["plain", "fp8"])
def test_sound_weights_pass(sound: dict[str, Path], model: Path, form: str) -> None:
    assert judge(sound[form], model).passed


@pytest.mark.parametrize("form", ["plain", "fp8"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_changed_weights_fail(
    sound: dict[str, Path], model: Path, tmp_path: Path, name: str, form: str
) -> None:
    outcome = judge(damaged(sound[form], tmp_path / "out", WEIGHTS[name]), model)
    assert not outcome.passed, name


def test_rounding_down_is_not_rounding(sound: dict[str, Path], model: Path, tmp_path: Path) -> None:
    """Every value is within a step, and half a step away on average: four times the noise."""

    def round_down(tensors: Tensors) -> None:
        exact = load_file(model / "model.safetensors")["model.layers.2.mlp.gate_proj.weight"].float()
        scaled = exact / tensors[f"{FC}.per_channel_scale"][:, None]
        codes = tensors[f"{FC}.weight"]
        away = codes.float().abs() > scaled.abs()
        lower = (raw_bytes(codes).int() - away.int()).clamp(min=0).to(torch.uint8)
        tensors[f"{FC}.weight"] = lower.view(codes.dtype)

    outcome = judge(damaged(sound["fp8"], tmp_path / "out", round_down), model)
    assert not outcome.passed and "mlp.fc" in outcome.summary, outcome.summary


@pytest.mark.parametrize("form", ["plain", "fp8"])
@pytest.mark.parametrize(
    "changes",
    [
        {"rotary_base": 10001.0},
        {"rotary_base": 15000.0},
        {"norm_epsilon": 1e-3},
        {"rotary_scaling": {"type": "dynamic", "factor": 64.0, "original_max_position_embeddings": 256}},
        {"max_position_embeddings": 64},
        {"rotary_scaling": {"type": "linear", "factor": 1.1}},
    ],
    ids=str,
)
def test_a_changed_configuration_fails(
    sound: dict[str, Path], model: Path, tmp_path: Path, changes: dict[str, Any], form: str
) -> None:
    out = shutil.copytree(sound[form], tmp_path / "out")
    edit(out / "config.json", lambda raw: raw.update(changes))
    outcome = judge(out, model)
    assert not outcome.passed and next(iter(changes)) in outcome.summary, outcome.summary


@pytest.fixture(scope="module")
def material(model: Path) -> Material:
    return load_material(hf.TransformersTokenizer(model), 2048, 2048)


def ask_first(material: Material) -> Material:
    return replace(material, prompts=material.prompts[:2], questions=material.questions[:12])


@pytest.fixture(scope="module")
def answers(model: Path, material: Material) -> ReferenceAnswers:
    """To the long text, and to the first prompts and questions: nothing else is asked here."""
    torch.set_num_threads(1)
    ends, subject = frozenset((2, 0)), TransformersSubject(model)
    positions = [p for octave in sample_positions(len(material.long)) for p in octave]
    long, _ = kept_answers.score_positions(subject, material.long, positions)
    little = ask_first(material)
    replies = subject.generate([q.tokens for q in little.questions], kept_answers.ANSWERED, ends)
    continuations = subject.generate([p.tokens for p in little.prompts], kept_answers.CONTINUED, ends)
    return ReferenceAnswers(
        {},
        material.sha256,
        ends,
        (),
        tuple(map(tuple, continuations)),
        tuple(map(tuple, replies)),
        (),
        long=long,
    )


POSITION_BOUNDS = {"kl": 0.05, "drift": 4.0}


def spoil(executor: Executor, change: Callable[[torch.Tensor], torch.Tensor]) -> Executor:
    """A stand-in for a runtime that is wrong from some position on."""
    forward = executor.forward
    executor.forward = lambda *args, **more: list(map(change, forward(*args, **more)))  # type: ignore[method-assign]
    return executor


@pytest.fixture(scope="module")
def long_logits(sound: dict[str, Path], material: Material) -> torch.Tensor:
    return Executor.load(sound["plain"], dtype="float32").forward([material.long])[0]


@pytest.fixture
def executor(sound: dict[str, Path], material: Material, long_logits: torch.Tensor) -> Executor:
    """A sound executor that was asked the long text before."""

    def forward(texts: list[tuple[int, ...]], positions: Sequence[int] | None = None) -> list[torch.Tensor]:
        assert texts == [material.long]
        return [long_logits if positions is None else long_logits[list(positions)]]

    loaded = Executor.load(sound["plain"], dtype="float32")
    loaded.forward = forward  # type: ignore[assignment,method-assign]
    return loaded


@pytest.mark.parametrize("form", ["plain", "fp8"])
def test_sound_engines_pass_at_every_length(
    sound: dict[str, Path], material: Material, answers: ReferenceAnswers, form: str
) -> None:
    subject = ExecutorSubject(Executor.load(sound[form], dtype="float32"))
    outcome = judge_positions(subject, material, answers, dict(POSITION_BOUNDS))
    assert outcome.passed and outcome.detail["longest"] == 2048, outcome.summary
    assert outcome.detail["byPosition"][-1]["to"] == 2046


@pytest.mark.parametrize("beyond", [128, 512, 2040])
def test_nan_beyond_a_position_fails(
    executor: Executor, material: Material, answers: ReferenceAnswers, beyond: int
) -> None:
    def change(logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits[:beyond], torch.full_like(logits[beyond:], float("nan"))])

    subject = ExecutorSubject(spoil(executor, change))
    with pytest.raises(GateError, match="NaN"):
        judge_positions(subject, material, answers, dict(POSITION_BOUNDS))


def test_a_drift_with_position_fails(
    executor: Executor, material: Material, answers: ReferenceAnswers
) -> None:
    """Divergence that grows stays below the bound of each octave, and is no format's."""

    def change(logits: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        growth = torch.linspace(0, 0.3, len(logits))[:, None]
        return logits + growth * torch.randn(logits.shape, generator=generator)

    subject = ExecutorSubject(spoil(executor, change))
    outcome = judge_positions(subject, material, answers, dict(POSITION_BOUNDS))
    assert not outcome.passed and "times the least before it" in outcome.summary, outcome.summary


def test_an_engine_that_accepts_less_is_asked_for_the_start(
    sound: dict[str, Path], material: Material, answers: ReferenceAnswers
) -> None:
    subject = ExecutorSubject(Executor.load(sound["plain"], dtype="float32"))
    subject.max_length = 512
    outcome = judge_positions(subject, material, answers, dict(POSITION_BOUNDS))
    assert outcome.passed and outcome.detail["longest"] == 512 and outcome.detail["positions"] > 150


@pytest.mark.parametrize(
    "ends,says", [((1999,), "tokens after an end token"), ((2, 0, 25), "stop at a token that ends none")]
)
def test_end_tokens_are_judged_by_behaviour(
    sound: dict[str, Path],
    model: Path,
    material: Material,
    answers: ReferenceAnswers,
    ends: tuple[int, ...],
    says: str,
) -> None:
    """An engine ends its answers by its own end tokens; they stop where the model's stop, or it fails."""
    short = ask_first(material)
    executor = Executor.load(sound["plain"], dtype="float32")
    if 25 in ends:  # the first token of some reply
        ends = (*ends[:2], answers.replies[0][0])
    subject: Any = EngineRuns(ExecutorSubject(executor), frozenset(ends))
    bounds = {"loops": 1.0, "stops": 0.01}
    outcome = quality.judge_smoke(subject, short, answers, hf.TransformersTokenizer(model), bounds)
    assert not outcome.passed and says in outcome.summary, outcome.summary
    own: Any = EngineRuns(ExecutorSubject(executor), frozenset((2, 0)))
    assert quality.judge_smoke(own, short, answers, hf.TransformersTokenizer(model), bounds).passed
