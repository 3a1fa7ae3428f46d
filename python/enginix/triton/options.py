"""Options of a repository of any kind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from enginix.errors import RepositoryError, UsageError

DEFAULT_MAX_BATCH_SIZE = 8


@dataclass(frozen=True)
class RepositoryOptions:
    """Options of a repository; ``None`` takes the engine's value.

    Attributes:
        max_batch_size: requests that run at once.
        max_tokens_limit: largest max_tokens of a request.
        max_queue_delay_microseconds: longest wait of preprocessing to fill a batch; for kind ``tensorrt``.
        max_queue_size: largest number of waiting requests; 0 is no limit.
        preprocessing_instances, postprocessing_instances: processes of each; for kind ``tensorrt``.
        ensemble_instances: processes that tokenize and decode; for kind ``reference``.
        device: device of the reference executor, as torch names it.
        interpreter: checkpoint whose network PyTorch executes in place of NVIDIA's runtime; for kind ``rtx``.
        add_special_tokens: put the tokenizer's special tokens around a prompt, as it defines them.
        skip_special_tokens: leave special tokens out of the text.
        exclude_input_in_output: return the answer without the prompt unless a request says otherwise.
    """

    max_batch_size: int | None = None
    max_tokens_limit: int | None = None
    max_queue_delay_microseconds: int = 0
    max_queue_size: int = 0
    preprocessing_instances: int = 1
    postprocessing_instances: int = 1
    ensemble_instances: int = 1
    device: str = "cpu"
    interpreter: Path | None = None
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    exclude_input_in_output: bool = True

    def __post_init__(self) -> None:
        least = {
            "max_batch_size": 1,
            "max_tokens_limit": 1,
            "max_queue_delay_microseconds": 0,
            "max_queue_size": 0,
            "preprocessing_instances": 1,
            "postprocessing_instances": 1,
            "ensemble_instances": 1,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and not minimum <= value < 2**31:
                raise UsageError(
                    f"{value} is not between {minimum} and {2**31 - 1}", where=f"--{name.replace('_', '-')}"
                )
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"{self.device!r} is not cpu, cuda or cuda:<number>", where="--device")


def resolve_batch_size(directory: Path, limit: int | None, options: RepositoryOptions) -> int:
    """Return the batch size of a repository, at most the engine's.

    Raises:
        RepositoryError: above the engine's limit.
    """
    batch = options.max_batch_size or min(DEFAULT_MAX_BATCH_SIZE, limit or DEFAULT_MAX_BATCH_SIZE)
    if limit is not None and batch > limit:
        raise RepositoryError(
            f"max_batch_size: {batch} is above the engine's {limit}",
            where=directory,
            fix=f"--max-batch-size {limit} or less",
        )
    return batch
