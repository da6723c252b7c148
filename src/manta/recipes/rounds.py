"""Rounds of a stage: each learns from those texts of the one before that were hard, by their losses."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from manta.errors import CheckpointError
from manta.runtime import atomic_write
from manta.text import CONSENSUS, Batch, Corpus, Loader
from manta.training import TrainConfig

if TYPE_CHECKING:
    from manta.recipes.parts import StageSpec

Rows = Integer[np.ndarray, " k"]
"""Rows of a corpus, ascending."""


def in_rounds(specs: "Sequence[StageSpec]", config: TrainConfig) -> "list[StageSpec]":
    """Each stage as so many rounds, which have its share of the time together.

    A round after the first learns from a share r of what the one before has seen, in r of its steps: it goes over its
    texts as often.

    Args:
        specs: the stages.
        config: says how many rounds, and r.
    """
    shares = [config.round_share**number for number in range(config.rounds)]
    return [
        replace(
            spec,
            name=spec.name if number == 0 else f"{spec.name}-{number + 1}",
            share=spec.share * share / sum(shares),
            begin=spec.begin if number == 0 else lambda: None,
            round=number,
        )
        for spec in specs
        for number, share in enumerate(shares if not spec.answers else [sum(shares)])
    ]


def seen_rows(loader: Loader, num_batches: int) -> Rows:
    """The rows that a loader gives in so many batches; one pass at most.

    Args:
        loader: at its beginning; it is moved on.
        num_batches: batches.
    """
    found: list[np.ndarray] = []
    while len(found) < num_batches and loader.epoch == 0:
        found.append(next(loader).index.numpy())
    return np.unique(np.concatenate(found))


def alike(rows: Rows, corpus: Corpus, *, apart: bool) -> dict[str, Integer[np.ndarray, " _"]]:
    """Rows whose losses compare, by name: all texts, or human ones and a teacher's answers.

    Args:
        rows: some.
        corpus: that they are of.
        apart: the two learn something else, so that the loss of one says nothing beside that of the other.
    """
    answers = corpus.tags[rows] == CONSENSUS
    kinds = {"human texts": rows[~answers], "answers": rows[answers]} if apart else {"texts": rows}
    return {name: some for name, some in kinds.items() if len(some)}


@torch.no_grad()
def hard_rows(
    groups: Loader,
    loss: Callable[[Batch], float],
    config: TrainConfig,
    generator: torch.Generator,
    enough: Callable[[int], bool] = lambda num: False,
) -> tuple[Rows, dict[str, float]]:
    """Draw a share of the rows, in groups, without replacement and by their losses.

    ``p_i = softmax(l_i / T)``,  l_i the mean loss of group i;  all alike if chosen uniformly

    Args:
        groups: gives the groups, in one pass.
        loss: of a group, in nats, under the weights as they are.
        config: share, temperature and how to choose.
        generator: of the draw.
        enough: asked with the number of groups so far, whether it should be left at these.

    Returns:
        The rows; and the mean loss of all groups, of those that were drawn, and the spread of all.

    Source: Tang et al., arXiv 2402.02791, whose groups are batches: of batches that are large and alike the losses
        hardly differ, so that drawing by them is drawing uniformly.
    """
    rows, losses = [], []
    while groups.epoch == 0 and not (rows and enough(len(rows))):
        batch = next(groups)
        rows.append(batch.index.cpu().numpy())
        losses.append(loss(batch))
    told = torch.tensor(losses, dtype=torch.float64)
    drawn = _drawn(told, max(1, round(config.round_share * len(rows))), config, generator)
    means = {"all": float(told.mean()), "drawn": float(told[drawn].mean()), "spread": float(told.std(correction=0))}
    return np.unique(np.concatenate([rows[index] for index in drawn.tolist()])), means


def _drawn(losses: Float[Tensor, "g"], count: int, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Indices of groups: the largest of ``log p_i + Gumbel``, which is a draw without replacement of any length."""
    logits = losses / config.round_temperature if config.round_choice == "loss" else torch.zeros_like(losses)
    uniform = torch.rand(losses.shape, generator=generator, dtype=losses.dtype).clamp_min(1e-300)
    return (logits - (-uniform.log()).log()).topk(count).indices


def kept_rows(run: Path, name: str, make: Callable[[], Rows], size: int, *, begun: bool = False) -> Rows:
    """The rows of a round: read back where the run has chosen them, else made and kept.

    Args:
        run: the run folder.
        name: of the round.
        make: chooses them.
        size: rows of the corpus.
        begun: the round has begun, so that they must be there.

    Raises:
        CheckpointError: what was kept is damaged, or gone.
    """
    file = run / "rounds" / f"{name}.npy"
    if begun and not file.exists():
        raise CheckpointError(f"{file} is missing; the run cannot be continued without it")
    if not file.exists():
        stream = io.BytesIO()
        np.save(stream, make(), allow_pickle=False)
        file.parent.mkdir(exist_ok=True)
        atomic_write(file, stream.getvalue())
    try:
        rows: Any = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); the run cannot be continued without it") from error
    whole = rows.dtype.kind == "i" and rows.ndim == 1 and len(rows) > 0
    if not whole or rows[0] < 0 or rows[-1] >= size or bool((np.diff(rows) <= 0).any()):
        raise CheckpointError(f"{file} holds no rows of the run's corpus; the run cannot be continued without it")
    return rows
