"""The reference's answers are those of transformers' greedy search, whatever the model keeps of a text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers.subject import TransformersSubject
from enginix.quantize import ptq

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KEYS = {
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "Gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16},
    "Bloom": {"n_layer": 3, "n_head": 4},
    # Its state is in its layers, and its answers have no cache.
    "RecurrentGemma": {"num_key_value_heads": 1, "lru_width": 64, "attention_window_size": 16},
}


def make_subject(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> TransformersSubject:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(SIZES | KEYS[name]))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    config.save_pretrained(directory)
    monkeypatch.setattr(hf, "load_hf_model", lambda *_: model)
    return TransformersSubject(directory)


@pytest.mark.parametrize("name", KEYS)
def test_answers_are_those_of_greedy_search(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(name, tmp_path, monkeypatch)
    model = subject.model
    for length in (5, 40):
        prompt = torch.randint(3, 300, (1, length))
        with torch.inference_mode():
            words = {"max_new_tokens": 30, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
            whole = model.generate(prompt, attention_mask=torch.ones_like(prompt), eos_token_id=None, **words)
        expected = whole[0, length:].tolist()
        assert subject.generate(prompt.tolist(), 30, frozenset()) == [expected]
        end = expected[12]
        (answer,) = subject.generate(prompt.tolist(), 30, frozenset({end}))
        assert answer == expected[: expected.index(end) + 1]


@pytest.mark.parametrize("name", KEYS)
def test_answers_to_prompts_of_other_lengths_are_those_to_each_alone(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(name, tmp_path, monkeypatch)
    prompts = [torch.randint(3, 300, (length,)).tolist() for length in (40, 3, 17, 200, 29)]
    alone = subject.generate(prompts, 10, frozenset(), together=False)
    ends = frozenset({alone[1][7]})
    alone_with_end = subject.generate(prompts, 10, ends, together=False)
    answered_alone: list[int] = []
    continue_prompt = subject._continue_prompt
    monkeypatch.setattr(
        subject,
        "_continue_prompt",
        lambda prompt, *words: answered_alone.append(len(prompt)) or continue_prompt(prompt, *words),
    )
    assert subject.generate(prompts, 10, frozenset()) == alone
    # A padded batch of a model with windows shorter than its texts, or without a cache, is no answer.
    if name == "Qwen3":
        assert answered_alone == [200]
    assert subject.generate(prompts, 10, ends) == alone_with_end


def test_a_draft_that_the_model_does_not_confirm_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject("Qwen3", tmp_path, monkeypatch)
    prompts = [torch.randint(3, 300, (length,)).tolist() for length in (12, 9)]
    alone = subject.generate(prompts, 30, frozenset(), together=False)
    wrong = [[*alone[0][:29], alone[0][29] ^ 1], alone[1]]
    monkeypatch.setattr(subject, "_continue_batch", lambda group, *_: wrong[::-1])
    assert subject.generate(prompts, 30, frozenset()) == alone
    # An answer that ends early without an end token is shorter than the model's.
    monkeypatch.setattr(subject, "_continue_batch", lambda group, *_: [a[:10] for a in alone[::-1]])
    assert subject.generate(prompts, 30, frozenset()) == alone


@pytest.mark.parametrize("name", KEYS)
def test_another_models_answers_count_where_the_model_gives_them_itself(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(name, tmp_path, monkeypatch)
    # Groups of several texts, with padding and without, and one text by itself.
    prompts = [torch.randint(3, 300, (length,)).tolist() for length in (12, 9, 12, 15, 40, 200)]
    alone = subject.generate(prompts, 10, frozenset(), together=False)
    ends = frozenset({alone[1][7]})
    alone_with_end = subject.generate(prompts, 10, ends, together=False)
    answered: list[int] = []
    continue_prompt = subject._continue_prompt
    monkeypatch.setattr(
        subject,
        "_continue_prompt",
        lambda prompt, *words: answered.append(len(prompt)) or continue_prompt(prompt, *words),
    )

    def answer(drafts: list[list[int]], ends: frozenset[int]) -> list[list[int]]:
        answered.clear()
        return subject.generate(prompts, 10, ends, together=False, drafts=drafts)

    assert answer(alone, frozenset()) == alone and not answered
    # A draft that goes on behind the model's end token is one up to that token.
    assert answer(alone, ends) == alone_with_end and not answered
    wrong = [
        [*alone[0][:9], alone[0][9] ^ 1],
        alone[1][:4],
        [300, *alone[2][1:]],
        [-1, *alone[3][1:]],
        [],
        [alone[5][0] ^ 1, *alone[5][1:]],
    ]
    assert answer(wrong, frozenset()) == alone and answered == [len(prompt) for prompt in prompts]
    assert answer([*wrong[:4], *alone[4:]], frozenset()) == alone and answered == [12, 9, 12, 15]


@pytest.mark.parametrize("capping", [1.0, None])
def test_attention_is_capped_in_reference_and_calibration(tmp_path: Path, capping: float | None) -> None:
    """Transformers' default attention leaves Gemma 2's soft-capping of scores out; its eager one does not."""
    import transformers

    torch.manual_seed(0)
    sizes = SIZES | KEYS["Gemma2"] | {"attn_logit_softcapping": capping, "initializer_range": 0.3}
    config = transformers.Gemma2Config(**sizes)
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokens = torch.arange(3, 15)[None]
    eager = transformers.Gemma2ForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = eager.eval()(tokens).logits[0]
        calibrated = ptq.load_model(tmp_path, "cpu")(tokens).logits[0]
    (logits,) = hf.compute_hf_logits(tmp_path, tokens.tolist())
    for computed in (logits, calibrated):
        torch.testing.assert_close(computed, expected, atol=1e-4, rtol=1e-4)
