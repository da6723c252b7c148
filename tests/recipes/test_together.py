"""Several processes train one model: the number of processes changes no loss, and no kill loses a checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from manta.config import from_dict
from manta.hub import load
from manta.recipes import Recipe, TrainingRun
from manta.recipes.runfolder import newest
from manta.runtime import json_tensors
from manta.training import Team, latest_checkpoint, load_checkpoint, read_log, save_checkpoint
from manta.training.holding import described

from ..hub.test_causal import published
from ..hub.test_foreign_writing import write_tokenizer
from .small import same_weights, small
from .together import run_job

WORKER = Path(__file__).with_name("together.py")
SHAPE = {"dim": 16, "heads": 2, "depth": 2, "prompt_depth": 1}
HOW = {"train": {"precision": "float32", "accumulate": 2}}
IMAGE = {"state": "image", "data": "builtin:shapes", "num_examples": 40, "batch_size": 4, "num_steps": 6, **HOW}
JOINT = {"state": "joint", "data": "builtin:shapes", "num_examples": 64, "batch_size": 8, "num_steps": 4, **HOW}


def text(**changes: Any) -> dict[str, Any]:
    return small(2, **{"num_steps": 6, **HOW, **changes})


KINDS: dict[str, dict[str, Any]] = {
    "ar": text(family="ar", teacher={**SHAPE, "draft_horizon": 2}),
    "manta": text(family="manta", num_steps=12, consensus="teacher", warm_start=True),
    "embedding": text(family="manta", model={**SHAPE, "bits": 2, "space": {"kind": "embedding"}}),
    "masked": text(family="masked", masked={**SHAPE, "thinking": {"carry": True, "slots": 2, "doubts": True}}),
    "block": text(family="block"),
    "aligned": text(family="aligned", aligned={**SHAPE, "causal": True, "draft_horizon": 2}),
    "decoder": text(family="decoder"),
    "dic": {**IMAGE, "model": {"net": {"kind": "dic", "width": 8, "depths": [1] * 5}, "bits": 2}},
    "joint": {**JOINT, "model": {"dim": 16, "depth": 2, "heads": 2}},
}


def together(processes: int, jobs: dict[Path, dict[str, Any]], file: Path) -> str:
    """Have several processes do jobs, by their folders; returns what was said."""
    file.write_text(json.dumps({str(folder): job for folder, job in jobs.items()}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    path = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONPATH": path}
    command = [*torchrun, str(WORKER), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    said = done.stdout + done.stderr
    assert done.returncode == 0 or any("die" in job for job in jobs.values()), said
    return said


def figures(run: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read_log(run)[0]]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """The recipes, and that of adapters of a published model."""
    place = tmp_path_factory.mktemp("published")
    (place / "base").mkdir()
    published(place / "base", "llama with grouped queries, tied")
    write_tokenizer(place / "base")
    rows = [{"prompt": f"w{i} w{j}", "text": f"w{i + 9} w{j}"} for i in range(6) for j in range(9)]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = {"state": "tuned", "data": str(place / "pairs.jsonl"), "begin_from": str(place / "base"), **HOW}
    return {**KINDS, "tuned": {**told, "lora": {"rank": 2}, "num_steps": 4}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, kinds) -> dict[str, Path]:
    """Every kind of model, trained by one process with two batches a step."""
    found = {kind: tmp_path_factory.mktemp("alone") / kind for kind in kinds}
    for kind, folder in found.items():
        run_job(folder, {"recipe": kinds[kind]})
    return found


@pytest.fixture(scope="module")
def paired(tmp_path_factory, kinds) -> Path:
    """The same by two processes, in folders of each way to share; and a run that they stop after some steps."""
    place = tmp_path_factory.mktemp("paired")
    jobs = {
        place / sharding / kind: {"recipe": recipe, "sharding": sharding}
        for sharding in ("none", "full")
        for kind, recipe in kinds.items()
    }
    stopped = {"recipe": KINDS["manta"], "sharding": "grad", "stop": 3}
    together(2, {**jobs, place / "begun": stopped}, place / "jobs.json")
    return place


@pytest.mark.parametrize("family", ["manta", "masked", "ar"])
def test_the_pace_of_a_step_of_several_batches_is_measured(family, tmp_path):
    """On copies: what learns beside the weights, too, and nothing of the run has moved."""
    told = {**KINDS[family], "num_steps": None, "time_budget": "30m", "consensus": "none", "warm_start": False}
    run = TrainingRun(from_dict(Recipe, told), tmp_path / "run", device="cpu")
    run._prepare()
    run._plan_for(run.parts.specs())
    before = [value.clone() for value in run.parts.modules.state_dict().values()]
    measured = {name: json.dumps(json_tensors(part.state_dict())) for name, part in run.parts.measured.items()}
    for spec in run.specs:
        run._free(spec)
        assert 0 < run.planner.pace(spec) < 60
    assert all(torch.equal(a, b) for a, b in zip(before, run.parts.modules.state_dict().values(), strict=True))
    assert measured == {name: json.dumps(json_tensors(part.state_dict())) for name, part in run.parts.measured.items()}
    run.folder.close()


def test_processes_plan_by_the_pace_that_the_first_has_measured(tmp_path, monkeypatch):
    told = {**KINDS["ar"], "num_steps": None, "time_budget": "30m"}
    run = TrainingRun(from_dict(Recipe, told), tmp_path / "run", device="cpu")
    run._prepare()
    run.team = Followers()
    run._plan_for(run.parts.specs())
    monkeypatch.setattr(run.planner, "_seconds_per_step", lambda spec: 9.0)
    assert run.planner.pace(run.specs[0]) == 0.5 and run.planner.clock.now() == 0.5
    run.folder.close()


class Followers(Team):
    """A team whose first process has always said a half."""

    def agree(self, value: Any) -> Any:
        return 0.5


def test_the_newest_checkpoint_is_looked_up_on_the_disk(tmp_path):
    assert newest(tmp_path) == "none"
    state = {"stage": "ar", "stage_step": 3, "stage_steps": 9}
    kept = save_checkpoint(tmp_path, 3, {"model": {"weight": torch.ones(2)}}, state)
    assert newest(tmp_path) == "step 3 (ar 3 of 9)"
    (kept / "state.json").write_text("{}")
    assert newest(tmp_path) == "damaged"


def test_a_run_says_how_many_share_it():
    assert described(1, 2, "none") == [] and "changes nothing" in described(1, 2, "full")[0]
    assert described(2, 4, "grad") == ["2 processes share the batches of a step, 4 in all; of the nets they share grad"]
    assert "warning: 2 of them wait" in described(4, 2, "none")[0] and "warning: 3 of" in described(4, 5, "none")[0]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_train_as_one(sharding, alone, paired):
    place = paired / sharding
    for kind, one in alone.items():
        ours, theirs = figures(one), figures(place / kind)
        assert len(ours) >= 4 and theirs == pytest.approx(ours, abs=1e-5), kind
        norms = figures(one, "gradient_norm")
        assert figures(place / kind, "gradient_norm") == pytest.approx(norms, rel=1e-4), kind
        assert json.loads((place / kind / "plan.json").read_text()) == json.loads((one / "plan.json").read_text())
        assert kind == "tuned" or type(load(place / kind)) is type(load(one))
    if sharding == "none":  # two gradients have one sum, whoever adds them up
        assert all(
            same_weights(one, place / kind) for kind, one in alone.items() if kind not in ("dic", "joint", "tuned")
        )


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_processes(alone, paired, tmp_path):
    """Stopped by two in shares, it goes on with one and with four, and no batch is read twice or left out."""
    begun, four, one = paired / "begun", tmp_path / "four", tmp_path / "one"
    done = len(figures(begun))
    assert 4 <= done < len(figures(alone["manta"])) and not (begun / "model").exists()
    kept = latest_checkpoint(begun)
    assert kept is not None
    tensors, state = load_checkpoint(kept)
    assert state["step"] == done and {"model", "optimizer", "average"} == set(tensors)
    for copy in (four, one):
        shutil.copytree(begun, copy)
    together(4, {four: {"sharding": "full"}}, tmp_path / "jobs.json")
    run_job(one, {})
    whole = figures(alone["manta"])
    assert figures(four) == pytest.approx(whole, abs=1e-5) and figures(one) == pytest.approx(whole, abs=1e-5)
    assert figures(four, "tokens") == figures(alone["manta"], "tokens")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_loses_no_checkpoint(alone, tmp_path):
    job = {"recipe": {**KINDS["ar"], "checkpoint_minutes": 0.0}, "sharding": "full", "die": 3}
    said = together(2, {tmp_path / "run": job}, tmp_path / "jobs.json")
    assert "has lost another one" in said
    kept = latest_checkpoint(tmp_path / "run")
    assert kept is not None and load_checkpoint(kept)[1]["step"] <= 3  # which reads every byte
    run_job(tmp_path / "run", {})
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
