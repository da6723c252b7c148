"""Several processes train one model: the number of processes changes no loss, and no kill loses a checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from manta.hub import load
from manta.training import latest_checkpoint, load_checkpoint, read_log

from .small import same_weights, small
from .together import run_job

WORKER = Path(__file__).with_name("together.py")
SHAPE = {"dim": 16, "heads": 2, "depth": 2, "prompt_depth": 1}
HOW = {"train": {"precision": "float32", "accumulate": 2}}
IMAGE = {"state": "image", "data": "builtin:shapes", "num_examples": 40, "batch_size": 4, "num_steps": 6, **HOW}
JOINT = {"state": "joint", "data": "builtin:shapes", "num_examples": 64, "batch_size": 8, "num_steps": 4, **HOW}


def text(**changes: Any) -> dict[str, Any]:
    return small(2, **{"num_steps": 6, **HOW, "block": SHAPE, **changes})


KINDS: dict[str, dict[str, Any]] = {
    "ar": text(family="ar", teacher={**SHAPE, "draft_horizon": 2}),
    "manta": text(family="manta", num_steps=12, consensus="teacher", warm_start=True),
    "embedding": text(family="manta", model={**SHAPE, "bits": 2, "space": {"kind": "embedding"}}),
    "masked": text(family="masked", masked={**SHAPE, "thinking": {"carry": True, "slots": 2, "doubts": True}}),
    "block": text(family="block"),
    "aligned": text(family="aligned"),
    "decoder": text(family="decoder"),
    "dic": {**IMAGE, "model": {"net": {"kind": "dic", "width": 8, "depths": [1] * 5}, "bits": 2}},
    "joint": {**JOINT, "model": {"dim": 16, "depth": 2, "heads": 2}},
}


def together(processes: int, jobs: dict[Path, dict[str, Any]], sharding: str, file: Path) -> str:
    """Have several processes do jobs, by their folders; returns what was said."""
    file.write_text(json.dumps({str(folder): job for folder, job in jobs.items()}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    path = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONPATH": path}
    command = [*torchrun, str(WORKER), str(file), sharding]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    said = done.stdout + done.stderr
    assert done.returncode == 0 or any("die" in job for job in jobs.values()), said
    return said


def figures(run: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read_log(run)[0]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Path]:
    """Every kind of model, trained by one process with two batches a step."""
    found = {kind: tmp_path_factory.mktemp("alone") / kind for kind in KINDS}
    for kind, folder in found.items():
        run_job(folder, {"recipe": KINDS[kind]}, "none")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_train_as_one(sharding, alone, tmp_path):
    jobs = {tmp_path / kind: {"recipe": recipe} for kind, recipe in KINDS.items()}
    together(2, jobs, sharding, tmp_path / "jobs.json")
    for kind, one in alone.items():
        ours, theirs = figures(one), figures(tmp_path / kind)
        assert len(ours) >= 4 and theirs == pytest.approx(ours, abs=1e-5), kind
        norms = figures(one, "gradient_norm")
        assert figures(tmp_path / kind, "gradient_norm") == pytest.approx(norms, rel=1e-4), kind
        assert json.loads((tmp_path / kind / "plan.json").read_text()) == json.loads((one / "plan.json").read_text())
        assert type(load(tmp_path / kind)) is type(load(one))
    if sharding == "none":  # two gradients have one sum, whoever adds them up
        assert all(same_weights(one, tmp_path / kind) for kind, one in alone.items() if kind not in ("dic", "joint"))


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_processes(alone, tmp_path):
    """Stopped by two in shares, it goes on with one and with four, and no batch is read twice or left out."""
    begun, four, one = (tmp_path / name for name in ("begun", "four", "one"))
    together(2, {begun: {"recipe": KINDS["manta"], "stop": 3}}, "grad", tmp_path / "jobs.json")
    done = len(figures(begun))
    assert 4 <= done < len(figures(alone["manta"])) and not (begun / "model").exists()
    kept = latest_checkpoint(begun)
    assert kept is not None
    tensors, state = load_checkpoint(kept)
    assert state["step"] == done and {"model", "optimizer", "average"} == set(tensors)
    for copy in (four, one):
        shutil.copytree(begun, copy)
    together(4, {four: {}}, "full", tmp_path / "jobs.json")
    run_job(one, {}, "none")
    whole = figures(alone["manta"])
    assert figures(four) == pytest.approx(whole, abs=1e-5) and figures(one) == pytest.approx(whole, abs=1e-5)
    assert figures(four, "tokens") == figures(alone["manta"], "tokens")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_loses_no_checkpoint(alone, tmp_path):
    job = {"recipe": {**KINDS["ar"], "checkpoint_minutes": 0.0}, "die": 3}
    said = together(2, {tmp_path / "run": job}, "full", tmp_path / "jobs.json")
    assert "has lost another one" in said
    kept = latest_checkpoint(tmp_path / "run")
    assert kept is not None and load_checkpoint(kept)[1]["step"] >= 1
    run_job(tmp_path / "run", {}, "none")
    assert figures(tmp_path / "run") == pytest.approx(figures(alone["ar"]), abs=1e-5)


@pytest.mark.slow
def test_what_the_first_process_refuses_all_refuse_and_it_says_so(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "manta"]
    path = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [*torchrun, "train", str(tmp_path / "none.txt"), "--num-steps", "8", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    said = [line for line in done.stderr.splitlines() if line.startswith("manta: error")]
    assert done.returncode != 0 and len(said) == 1 and "none.txt" in said[0], done.stderr
    assert not (tmp_path / "run").exists()
