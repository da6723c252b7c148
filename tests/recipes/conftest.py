"""What all tests of recipes share."""

from collections.abc import Iterator

import pytest

from manta.recipes import TrainingRun
from manta.recipes.run import Note
from manta.training import Stage


@pytest.fixture(scope="module", autouse=True)
def sampled_once() -> Iterator[None]:
    """A stage writes samples at the last time alone, which takes as long as its few steps do; see `test_run`."""
    every = TrainingRun._samples

    def last(run: TrainingRun, stage: Stage, step: int) -> Iterator[Note]:
        if stage.step + max(1, stage.num_steps // 3) > stage.num_steps:
            yield from every(run, stage, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "_samples", last)
        yield
