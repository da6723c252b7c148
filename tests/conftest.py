"""Public functions of manta check the shapes in their annotations while tests run, and only then."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from .checking import check_annotations

check_annotations("manta")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets: MANTA_DATA, else `shared/data` beside the repository; skips where absent."""
    folder = Path(os.environ.get("MANTA_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set MANTA_DATA to the folder that holds e2e-dataset.zip")
    return folder


@pytest.fixture
def no_global_draws() -> Callable[[], AbstractContextManager[None]]:
    """Within `with no_global_draws():` all randomness has to come from generators that are handed in."""

    @contextmanager
    def watched() -> Iterator[None]:
        before = torch.get_rng_state()
        yield
        assert torch.equal(torch.get_rng_state(), before), "drawn from torch's global generator"

    return watched
