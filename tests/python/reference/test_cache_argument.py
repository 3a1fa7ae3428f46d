"""The reference answers with the key-value cache of the transformers that is here, whatever its name."""

from __future__ import annotations

import warnings
from pathlib import Path

from enginix.evaluation.reference_answers.subject import TransformersSubject, name_cache_argument

MODEL = Path(__file__).parents[2] / "models" / "tiny-qwen3"


def test_an_answer_computes_each_token_once() -> None:
    subject = TransformersSubject(MODEL)
    lengths = []
    subject.model.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        [alone] = subject.generate([[5, 6, 7]], 4, frozenset(), together=False)
        [drafted] = subject.generate([[5, 6, 7]], 4, frozenset())
    assert alone == drafted and len(alone) == 4
    # The last one confirms the draft.
    assert lengths == [3, 1, 1, 1, 3, 1, 1, 1, 6]


def test_the_cache_has_the_name_that_the_model_takes() -> None:
    class Older:
        def forward(self, input_ids: object, past_key_values: object = None) -> None: ...

    class Newer:
        def forward(self, input_ids: object, cache: object = None) -> None: ...

    assert name_cache_argument(Older()) == "past_key_values"  # type: ignore[arg-type]
    assert name_cache_argument(Newer()) == "cache"  # type: ignore[arg-type]
