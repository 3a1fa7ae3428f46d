"""The golden checkpoints, unpacked once a user; small models, loaded once and computed on one thread."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
from golden import unpack_archive
from tiny_model import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Directory of the golden cases, which tests only read."""
    return unpack_archive("golden")


@pytest.fixture(scope="session")
def hugging_face() -> Callable[..., Any]:
    """Loads a model directory by transformers in float32, once for tests that leave it as it is.

    Keyword arguments change its configuration.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

    @functools.cache
    def load(directory: Path, **changes: Any) -> Any:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        for key, value in changes.items():
            setattr(config, key, value)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, config=config, dtype=torch.float32
        )
        return model.eval()

    return load
