"""Healthy engines of three models in eight number formats beside their bounds: both errors of the gates.

    python tests/python/gates/healthy_table.py [--work DIR] [--write]

A false alarm is a healthy engine that fails. Texts are drawn again 1,000 times from those of the gate, in
blocks of 32 positions, and the share is counted whose divergence is above the bound. What is not found is a
divergence below the bound: the bound over the healthy engine's own says how many times worse an engine may be
unseen by the gate agreement. --work keeps the checkpoints, --write puts the table into docs' damage.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests"), str(Path(__file__).parent)]

import torch  # noqa: E402
from damage_table import MODEL, DamageJudge, make_checkpoints, write_table  # noqa: E402

from enginix.evaluation.judgement import suite  # noqa: E402
from enginix.reference.config import read_executor_config  # noqa: E402
from tiny_model import make_llama, make_recalling  # noqa: E402

BEGIN, END = "<!-- healthy: tests/python/gates/healthy_table.py -->", "<!-- end of healthy -->"
DRAWS, BLOCK = 1000, 32


def copy_model(model: Path, out: Path) -> Path:
    return Path(shutil.copytree(model, out))


MODELS: dict[str, Callable[[Path, Path], Path]] = {
    "tiny-qwen3": copy_model,
    "tiny-recall": make_recalling,
    "tiny-llama": make_llama,
}


def count_false_alarms(divergence: torch.Tensor, bound: float) -> int:
    """Return how many of the drawn texts have a mean divergence above the bound.

    Args:
        divergence: shape (positions,), nats, of a healthy engine.
    """
    blocks = divergence[: len(divergence) // BLOCK * BLOCK].view(-1, BLOCK).mean(1)
    draws = torch.randint(len(blocks), (DRAWS, len(blocks)), generator=torch.Generator().manual_seed(0))
    return int((blocks[draws].mean(1) > bound).sum())


def list_rows(name: str, model: Path, work: Path) -> list[str]:
    judge, rows = DamageJudge(model), []
    for form, checkpoint in make_checkpoints(model, work).items():
        failed, divergence = judge.execute(checkpoint, None)
        config = read_executor_config(checkpoint)
        bound = suite.resolve_checkpoint_bounds(config, {"agreement": {}})["agreement"]["kl"]
        found = float(divergence.mean())
        cells = [name, form, f"{found:.2g}", f"{bound:g}", str(count_false_alarms(divergence, bound))]
        cells += [f"{bound / found:.1f}" if found > 1e-4 else "", ", ".join(failed) or "none"]
        rows.append(f"| {' | '.join(cells)} |")
        sys.stderr.write(rows[-1] + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the checkpoints here")
    parser.add_argument("--write", action="store_true", help="put the table into its page")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        f"| model | format | mean KL | bound | false alarms of {DRAWS} | unseen below × | gates that fail |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as directory:
        for name, make in MODELS.items():
            model = make(MODEL, Path(directory) / name)
            work = (args.work or Path(directory)) / f"healthy-{name}"
            rows += list_rows(name, model, work)
    text = "\n".join(rows)
    sys.stdout.write(text + "\n")
    if args.write:
        write_table(BEGIN, END, text)
    assert all(row.endswith("| none |") for row in rows[2:]), "a healthy engine fails a gate"


if __name__ == "__main__":
    main()
