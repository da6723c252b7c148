"""A model of a thousand weights in a folder, lines for it to answer, and one Ray cluster for all tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from manta.cluster.folder import JobFolder, identity
from manta.cluster.part import Writing
from manta.families.options import GenerateOptions
from manta.hub import save_model
from tests.families.conftest import WORDS, make_ar

SETTINGS = GenerateOptions(max_tokens=6, temperature=1.0)
FLAGS = ("--max-tokens", "6", "--temperature", "1")
"""The same on the command line."""


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "ar"
    save_model(folder, make_ar(), recipe={}, card="", dtype=torch.float32)
    return str(folder)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a cluster of two processes, which this process is connected to."""
    pytest.importorskip("ray")
    from manta.cluster import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))  # its workers are no children of pytest
        with connected("local", workers=2) as ray:
            yield ray.get_runtime_context().gcs_address


def some_lines(num: int) -> list[dict[str, Any]]:
    words = WORDS[0].split()
    return [{"prompt": " ".join(words[i % 7 : i % 7 + 1 + i % 5]), "id": i} for i in range(num)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def how(out: Path, **more: Any) -> Writing:
    """What a worker is told of a job that writes with a model at hand, and the job's folder begun."""
    told: dict[str, Any] = {"kind": ".jsonl", "num_samples": 1, "seed": 0, "part_rows": 4, "settings": SETTINGS, **more}
    folder = JobFolder(out, told["kind"])
    out.mkdir(exist_ok=True)
    folder.begin({"name": "test"})
    rest = {"model": None, "model_digest": "", "device": "cpu", "repetition": None, "threads": None}
    return Writing(out=str(out), identity=identity({"name": "test"}), batch_size=3, **{**rest, **told})


def texts_of(out: Path) -> list[dict[str, Any]]:
    """What all parts tell, one after the other, but the seconds."""
    lines = (line for file in sorted(out.glob("part-*.jsonl")) for line in file.read_text("utf-8").splitlines())
    return [without_seconds(json.loads(line)) for line in lines]


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    assert row["seconds"] >= 0
    return {name: value for name, value in row.items() if name != "seconds"}
