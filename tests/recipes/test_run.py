"""A run resumes bit for bit, refuses what it cannot do, and leaves a model that loads."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from manta.cli import main
from manta.config import from_dict
from manta.errors import CheckpointError, ConfigError, DataError, MantaError, TrainingError, UsageError
from manta.families.prompted import PromptedModel
from manta.hub import load
from manta.operators import AttentionConfig
from manta.recipes import Recipe, TrainingRun, resolve
from manta.recipes.budget import FEW_STEPS, LEAST_STEPS, SAFETY, Clock, seconds_for, undertrained
from manta.recipes.card import model_card
from manta.recipes.planning import Planner
from manta.recipes.recipe import SIZES, seconds
from manta.recipes.run import Note
from manta.recipes.runfolder import RunFolder
from manta.recipes.stages import stage_specs
from manta.spaces import LatentSpaceConfig
from manta.training import Progress
from manta.training.log import RunLog

from ..training.test_log import events

TINY = {
    "data": "builtin:weather",
    "num_examples": 120,
    "vocab_size": 512,
    "size": "nano",
    "batch_tokens": 512,
    "num_steps": 13,
    "checkpoint_minutes": 0.0,
    "consensus": "none",
    "warm_start": False,
    "model": {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 1, "space": {"channels": 4}},
}


@pytest.fixture(scope="module", autouse=True)
def sampled_once() -> None:
    """Here samples are written as often as they are, so that a resumed run has met them too."""


def recipe(**changes) -> Recipe:
    own = {name: value for name, value in TINY.items() if name != "model" or changes.get("family", "manta") == "manta"}
    return from_dict(Recipe, {**own, **changes})


def finish(run: TrainingRun, stop_after: int | None = None) -> list[Progress]:
    """Train, or stop between two steps as an interrupt would."""
    steps = []
    for event in run.events():
        if isinstance(event, Progress):
            steps.append(event)
            if len(steps) == stop_after:
                break
    return steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(TrainingRun(recipe(), folder))
    return folder


@pytest.mark.parametrize("stop_after", [1, 4, 6, 9, 12])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(whole, tmp_path, stop_after):
    finish(TrainingRun(recipe(), tmp_path / "run"), stop_after)
    finish(TrainingRun(None, tmp_path / "run", resume=True))
    assert same(whole, tmp_path / "run")
    keys = ("global_step", "stage", "loss", "gradient_norm")
    logs = [
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (whole, tmp_path / "run")
    ]
    assert [[row[k] for k in keys] for row in logs[0]] == [[row[k] for k in keys] for row in logs[1]]


def test_another_seed_gives_other_weights(whole, tmp_path):
    finish(TrainingRun(recipe(seed=1), tmp_path / "run"))
    assert not same(whole, tmp_path / "run")


def test_the_model_loads_and_writes(whole):
    texts = load(whole).write(["place: Thornbury, day: Monday"] * 2, num_steps=4)
    assert all(isinstance(text, str) for text in texts)


def test_a_half_written_checkpoint_is_ignored(whole, tmp_path):
    run = tmp_path / "run"
    finish(TrainingRun(recipe(), run), 9)
    left = run / "checkpoints" / ".manta-0123456789ab-99-1.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (run / ".manta-0123456789ab-98-1.tmp").write_bytes(b"half")
    finish(TrainingRun(None, run, resume=True))
    assert same(whole, run)
    assert not [file for file in run.rglob(".manta-*")], "what a killed process left is swept"


@pytest.mark.parametrize("consensus", ["medoid", "teacher"])
def test_consensus_targets_train_and_resume(tmp_path, consensus):
    taught = consensus == "teacher"
    settings = {"consensus": consensus, "warm_start": taught, "recombined": 5 * taught, "num_steps": 10}
    finish(TrainingRun(recipe(**settings), tmp_path / "whole"))
    finish(TrainingRun(recipe(**settings), tmp_path / "run"), 5)
    finish(TrainingRun(None, tmp_path / "run", resume=True))
    assert same(tmp_path / "whole", tmp_path / "run")
    taught = [load(tmp_path / run / "teacher") for run in ("whole", "run") if consensus == "teacher"]
    assert all(lm.family == "ar" and len(lm.write(["place: Fernley"])) == 1 for lm in taught)
    assert consensus == "teacher" or not (tmp_path / "run" / "teacher").exists()


def test_prompts_too_long_to_be_read_do_not_stop_a_run(tmp_path):
    """The corpus drops them; the samples of a stage and the teacher's answers have to leave them out as well."""
    numbers = random.Random(0)
    rows = [f"name: {i}" + f", long: {numbers.randrange(10**400)}" * (i % 2) for i in range(60)]
    lines = (json.dumps({"prompt": prompt, "text": "It is here."}) for prompt in rows)
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    settings = {"data": str(tmp_path / "data.jsonl"), "consensus": "teacher", "num_steps": 5, "num_examples": None}
    finish(TrainingRun(recipe(**settings), tmp_path / "run"))
    answered = "".join(file.read_text() for file in (tmp_path / "run").glob("targets-teacher-*.jsonl"))
    samples = "".join(file.read_text() for file in (tmp_path / "run" / "samples").iterdir())
    assert "long" not in answered + samples
    assert "name" in samples


@pytest.mark.parametrize("consensus", ["medoid", "teacher"])
def test_consensus_targets_of_texts_without_prompts_are_refused_before_training(tmp_path, consensus):
    (tmp_path / "data.txt").write_text("\n".join(f"line {i}" for i in range(20)))
    run = TrainingRun(recipe(data=str(tmp_path / "data.txt"), consensus=consensus), tmp_path / "run")
    with pytest.raises(DataError, match="no prompts"):
        finish(run, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "ar"},
        {"model": {**TINY["model"], "space": {"kind": "embedding", "channels": 8}}},
        {"train": {"optimizer": "adamw"}},
        {"train": {"optimizer": "muon"}},
    ],
)
def test_other_kinds_train_resume_and_load(tmp_path, changes):
    finish(TrainingRun(recipe(**changes), tmp_path / "whole"))
    finish(TrainingRun(recipe(**changes), tmp_path / "run"), 6)
    finish(TrainingRun(None, tmp_path / "run", resume=True))
    assert same(tmp_path / "whole", tmp_path / "run")
    assert load(tmp_path / "run").write([None])


def test_tensorboard_resumes_without_a_step_twice(tmp_path):
    pytest.importorskip("tensorboard")
    run, settings = tmp_path / "run", {"family": "ar", "num_steps": 8, "train": {"tensorboard": True}}
    finish(TrainingRun(recipe(**settings), run), 5)
    finish(TrainingRun(None, run, resume=True))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shown = events(run)
    assert [step for step, _ in shown["teacher/loss"]] == [row["global_step"] for row in rows] == list(range(1, 9))
    values = [value.float_val[0] for _, value in shown["teacher/loss"]]
    assert values == pytest.approx([row["loss"] for row in rows])
    assert [step for step, _ in shown["samples/text_summary"]] == [2, 4, 6, 8]


def test_tensorboard_that_is_missing_stops_a_run_before_it_has_a_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match="tensorboard"):
        TrainingRun(recipe(train={"tensorboard": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_not_overwritten(whole):
    with pytest.raises(UsageError, match="--resume"):
        TrainingRun(recipe(), whole)


def test_a_run_resumed_from_another_folder_says_where_its_data_are(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "away").mkdir()
    for data in ("pairs.jsonl", "e2e:pairs.zip"):
        run = RunFolder(tmp_path / "home" / data[:3], resume=False)
        run.write_recipe(resolve(Recipe(data=data, family="ar", size="nano", num_steps=8)))
        run.close()
        monkeypatch.chdir(tmp_path / "away")
        with pytest.raises(DataError, match=f"names its data {data}, a path from the folder in which it was begun"):
            TrainingRun(None, run.path, resume=True)


def test_an_empty_folder_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        TrainingRun(None, tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_with_the_cause_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    run = TrainingRun(recipe(), tmp_path / "run")
    from manta.families import objectives

    original, calls = objectives.PolicyMatching.__call__, [0]

    def broken(self, *args):
        loss = original(self, *args)
        calls[0] += 1
        return type(loss)(loss.total * float("nan"), loss.parts) if calls[0] == 4 else loss

    monkeypatch.setattr(objectives.PolicyMatching, "__call__", broken)
    with pytest.raises(TrainingError, match=r"'policy' stopped at step 3.*learning_rate"):
        finish(run)
    assert (tmp_path / "run" / "checkpoints" / "step-3").is_dir()


def test_resolve_keeps_what_was_set_by_hand():
    given = {"size": "small", "model": {"dim": 64}, "train": {"learning_rate": 2e-3}}
    found = resolve(from_dict(Recipe, given))
    assert (found.model.dim, found.teacher.dim, found.train.learning_rate) == (64, 64, 2e-3)
    assert isinstance(found.model.space, LatentSpaceConfig)
    assert found.model.depth == 5
    assert resolve(found) == found


@pytest.mark.parametrize("shape", [{"model": {"max_text": 16}}, {"teacher": {"max_prompt": 8}}])
def test_a_model_shorter_than_its_data_is_refused(shape):
    with pytest.raises(ConfigError, match="less than the data"):
        resolve(from_dict(Recipe, shape))


@pytest.mark.parametrize("wrong", [{"vocab_size": 10}, {"num_steps": 1}, {"time_budget": "soon"}, {"batch_tokens": 10}])
def test_a_recipe_that_cannot_run_is_refused(wrong):
    with pytest.raises(ConfigError):
        from_dict(Recipe, wrong)


@pytest.mark.parametrize(
    ("data", "changes", "starts", "answers"),
    [
        ("builtin:weather", {}, True, True),
        ("builtin:weather", {"warm_start": False}, False, True),
        ("builtin:weather", {"family": "masked"}, False, False),
        ("builtin:weather", {"family": "masked", "warm_start": True}, True, False),
        ("builtin:weather", {"family": "ar"}, False, False),
        ("builtin:weather", {"consensus": "none"}, True, False),
        ("builtin:weather", {"consensus": "none", "warm_start": False}, False, False),
        ("builtin:sudoku4", {}, False, False),
        ("prose", {}, True, False),
    ],
)
def test_a_teacher_answers_prompts_and_lends_its_weights_unless_a_rule_does(tmp_path, data, changes, starts, answers):
    if data == "prose":
        (tmp_path / "prose.txt").write_text("".join(f"It is {i} degrees in the north.\n" for i in range(40)))
        data = str(tmp_path / "prose.txt")
    given = {"data": data, "consensus": "auto", "warm_start": None, "num_steps": 10, "num_examples": 20}
    run = TrainingRun(recipe(**{**given, **changes}), tmp_path / "run")
    stages = [progress.stage for progress in finish(run)]
    assert ("teacher" in stages[:-1] and run.recipe.family != "ar") == (starts or answers)
    assert run.recipe.warm_start == starts
    assert any((tmp_path / "run").glob("targets-teacher-*.jsonl")) == answers


@pytest.mark.parametrize("family", ["manta", "masked"])
def test_a_puzzle_s_pupil_starts_with_its_teacher_s_places(tmp_path, family):
    given = recipe(data="builtin:sudoku4", family=family, warm_start=True, num_examples=20)
    run = TrainingRun(given, tmp_path / "run")
    run._prepare()
    policy = stage_specs(run.parts)[1]
    pupil, teacher = run.parts.modules["model"], run.parts.teacher
    assert isinstance(pupil, PromptedModel) and pupil.places is not None and teacher.places is not None
    policy.begin()
    places = min(len(pupil.places.weight), len(teacher.places.weight))
    assert places >= 16
    assert torch.equal(pupil.places.weight[:places], teacher.places.weight[:places])
    assert torch.equal(pupil.embedding.weight, teacher.embedding.weight)
    ours, theirs = pupil.memory_encoder.state_dict(), teacher.memory_encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("size", SIZES)
def test_a_teacher_and_its_pupil_have_the_same_blocks_at_every_size(size):
    found = resolve(Recipe(size=size))
    assert found.model.operator == found.teacher.operator == AttentionConfig()
    for name in ("dim", "heads", "depth", "prompt_depth"):
        assert getattr(found.model, name) == getattr(found.teacher, name) is not None


@pytest.mark.parametrize(("budget", "size"), [("3m", "nano"), ("15m", "tiny"), ("2h", "small"), (None, "small")])
def test_the_size_follows_the_time_budget(budget, size):
    assert resolve(Recipe(time_budget=budget)).size == size


def test_durations():
    assert [seconds(text) for text in ("90s", "3m", "1.5h")] == [90, 180, 5400]


def test_a_time_budget_becomes_steps_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Planner, "_seconds_per_step", lambda self, spec: 0.05)
    first = finish(TrainingRun(recipe(num_steps=None, time_budget="120s"), tmp_path / "run"), 1)[0]
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert LEAST_STEPS < first.num_steps == plan["policy"] < 120 / 0.05
    (tmp_path / "run" / "plan.json").write_text("{}")  # for people; the checkpoint holds what counts
    resumed = finish(TrainingRun(None, tmp_path / "run", resume=True), 1)[0]
    assert (resumed.step, resumed.num_steps) == (2, plan["policy"])


def test_each_stage_takes_its_share_of_what_is_left(tmp_path, monkeypatch):
    """The pace of a step is what the clock says, and a stage that was slow leaves less to those after it."""
    run = TrainingRun(recipe(num_steps=None, time_budget="10000s", consensus="teacher", recombined=0), tmp_path / "run")
    run._prepare()
    run._plan_for(stage_specs(run.parts))
    monkeypatch.setattr(run.planner, "_seconds_per_step", lambda spec: 2.0)
    names, spent = [spec.name for spec in run.specs], [0.0, 5000.0, 9000.0]
    assert names == ["teacher", "policy", "own"]
    for index, seconds_spent in enumerate(spent):
        run.planner.clock = Clock(seconds_spent)
        run.planner.steps_of(index)
    shares = run.recipe.shares
    left = [SAFETY * (10000 - seconds_spent) for seconds_spent in spent]
    wanted = {
        "teacher": (left[0] - 1000) * shares.teacher / (shares.teacher + shares.policy + shares.own),
        "policy": left[1] * shares.policy / (shares.policy + shares.own),
        "own": left[2],
    }
    assert run.plan == {name: pytest.approx(value / 2, rel=0.01) for name, value in wanted.items()}
    assert run.planner.steps_of(1) == run.plan["policy"], "decided once"


# What a folder holds before a run is left as it is.


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", ["corpus/mine.txt", "corpus.old/x", "metrics.jsonl", "model/config.json", ".hidden"])
def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_is(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine\n" * 50)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=f"not empty: it holds {name.split('/')[0]}"):
        TrainingRun(recipe(), tmp_path)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        TrainingRun(None, tmp_path, resume=True)
    assert tree(tmp_path) == before


def test_folders_that_a_user_put_beside_a_run_s_own_stay(tmp_path):
    run = tmp_path / "run"
    finish(TrainingRun(recipe(), run), 9)
    kept = ("corpus/notes.txt", "corpus.old/a", "corpus.tmp/a", "checkpoints/step-best/a", "checkpoints/step-0/a", "x")
    for name in kept:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    (run / "corpus" / "tags.bin").write_bytes(b"damaged")  # so that the corpus is made again
    finish(TrainingRun(None, run, resume=True))
    assert all((run / name).read_text() == "mine" for name in kept)


@pytest.mark.parametrize("name", ["model", "teacher", "corpus"])
def test_a_folder_of_the_name_of_a_run_s_own_is_refused_at_the_start(tmp_path, name):
    run = tmp_path / "run"
    finish(TrainingRun(recipe(), run), 5)
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).mkdir()
    (run / name / "mine.txt").write_text("mine")
    with pytest.raises(MantaError, match=f"{name}.*move it elsewhere"):
        finish(TrainingRun(None, run, resume=True))
    assert (run / name / "mine.txt").read_text() == "mine"


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path):
    """Whatever stops it before its first step: the same command serves again once that is mended."""
    out = tmp_path / "new" / "run"
    with pytest.raises(DataError):
        finish(TrainingRun(recipe(data=str(tmp_path / "none.txt")), out))
    with pytest.raises(UsageError, match=r"too short.*give --time-budget \d+[smh]"):
        finish(TrainingRun(recipe(num_steps=None, time_budget="0.1s"), out))
    assert not list(tmp_path.iterdir())


def test_a_finished_run_that_is_resumed_leaves_the_model_s_card_alone(tmp_path):
    run = tmp_path / "run"
    finish(TrainingRun(recipe(), run))
    (run / "model" / "README.md").write_text("my own card")
    finish(TrainingRun(None, run, resume=True))
    assert (run / "model" / "README.md").read_text() == "my own card"


# Two writers, signals, full disks, damage.


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path):
    first = TrainingRun(recipe(), tmp_path / "run")
    events = first.events()
    while not isinstance(next(events), Progress):
        pass
    with pytest.raises(UsageError, match="another process is training"):
        TrainingRun(None, tmp_path / "run", resume=True)
    events.close()
    finish(TrainingRun(None, tmp_path / "run", resume=True))


@pytest.fixture(autouse=True)
def heard_signals():
    """Signals as they are to a program in the foreground; one in the background is started deaf to some."""
    heard = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_writes_a_checkpoint_says_the_step_and_the_run_goes_on(
    whole, tmp_path, capsys, name, code, monkeypatch
):
    file, run, steps = tmp_path / "first.toml", tmp_path / "run", []
    file.write_text(_toml({**TINY, "checkpoint_minutes": 60.0}))
    original = RunLog.row

    def log(self, step, row):
        original(self, step, row)
        steps.append(step)
        if step == 6:
            os.kill(os.getpid(), getattr(signal, name))

    monkeypatch.setattr(RunLog, "row", log)
    assert main(["train", str(file), "--out", str(run)]) == code
    said = capsys.readouterr().err
    assert steps[-1] == 6 and "saved at step 6" in said and "--resume" in said
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert steps[6] == 7 and "at step 7" in capsys.readouterr().err
    assert same(whole, run)


def test_a_second_signal_does_not_wait(tmp_path, monkeypatch):
    run = TrainingRun(recipe(checkpoint_minutes=60.0), tmp_path / "run")
    original = RunLog.row

    def log(self, step, row):
        original(self, step, row)
        if step == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunLog, "row", log)
    with pytest.raises(KeyboardInterrupt):
        finish(run)
    assert run.saved.startswith("step 0")


def test_a_full_disk_says_so_and_leaves_no_half_of_anything(whole, tmp_path, monkeypatch):
    run, full = tmp_path / "run", OSError(errno.ENOSPC, "No space left on device")
    from manta.training import checkpoint

    original, calls = checkpoint._save_file, [0]

    def save(tensors, file):
        calls[0] += 1
        if calls[0] > 7:
            file.write_bytes(b"half")
            raise full
        original(tensors, file)

    monkeypatch.setattr(checkpoint, "_save_file", save)
    with pytest.raises(TrainingError, match=r"disk is full.*newest checkpoint is step \d"):
        finish(TrainingRun(recipe(), run))
    assert not list(run.rglob(".manta-*"))
    monkeypatch.undo()
    finish(TrainingRun(None, run, resume=True))
    assert same(whole, run)


def test_the_disk_is_full_before_the_first_step(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("manta.text.corpus._write_manifest", full)
    with pytest.raises(DataError, match="No space left"):
        finish(TrainingRun(recipe(), tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_data_edited_while_a_run_is_interrupted_are_noticed_by_content(tmp_path):
    file, run = tmp_path / "data.txt", tmp_path / "run"
    lines = [f"It is {i} degrees in the north." for i in range(60)]
    file.write_text("\n".join(lines))
    finish(TrainingRun(recipe(data=str(file)), run), 5)
    os.utime(file, (1, 1))
    finish(TrainingRun(None, run, resume=True), 2)
    before = file.stat()
    file.write_text("\n".join(lines).replace("north", "south"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    with pytest.raises(CheckpointError, match="changed since it began"):
        finish(TrainingRun(None, run, resume=True))


def test_data_edited_before_the_first_checkpoint_are_noticed(tmp_path):
    file, run = tmp_path / "data.txt", tmp_path / "run"
    file.write_text("\n".join(f"It is {i} degrees in the north." for i in range(60)))
    finish(TrainingRun(recipe(data=str(file)), run), 2)
    shutil.rmtree(run / "checkpoints")
    finish(TrainingRun(None, run, resume=True), 2)
    shutil.rmtree(run / "checkpoints")
    file.write_text(file.read_text().replace("north", "south"))
    with pytest.raises(CheckpointError, match="changed since it began"):
        finish(TrainingRun(None, run, resume=True))
    for content in ("", "[1]", "{" * 5000):
        (run / "data.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"data\.json is damaged"):
            finish(TrainingRun(None, run, resume=True))


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"data": 3}', "{" * 5000, "\udcff"])
def test_a_damaged_recipe_is_a_typed_error(whole, tmp_path, content):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "recipe.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"recipe\.json"):
        TrainingRun(None, tmp_path / "run", resume=True)


def test_a_recipe_changed_in_what_the_weights_depend_on_is_refused(tmp_path):
    run = tmp_path / "run"
    finish(TrainingRun(recipe(), run), 5)
    stored = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**stored, "model": {**stored["model"], "dim": 10**12}}))
    with pytest.raises(CheckpointError, match="another model"):
        finish(TrainingRun(None, run, resume=True))
    stored["train"]["learning_rate"] /= 2
    (run / "recipe.json").write_text(json.dumps(stored))
    notes = [event.text for event in TrainingRun(None, run, resume=True).events() if isinstance(event, Note)]
    assert any("another train" in note for note in notes)


def test_a_time_budget_gives_every_stage_its_least_steps(tmp_path, monkeypatch):
    """A clock that is set back, a machine that stalls: no stage is left with a step or two, and the model says so."""
    settings = {"num_steps": None, "time_budget": "1000s", "consensus": "teacher", "recombined": 0}
    run = TrainingRun(recipe(**settings), tmp_path / "run")
    run._prepare()
    run._plan_for(stage_specs(run.parts))
    monkeypatch.setattr(run.planner, "_seconds_per_step", lambda spec: 2.0)
    for index, spent in enumerate((10.0, 990.0, 5000.0)):
        run.planner.clock = Clock(spent)
        assert run.planner.steps_of(index) >= LEAST_STEPS
    assert "undertrained" in model_card("manta", run.recipe, run.plan, {}, run.parts.report)
    assert undertrained({"policy": FEW_STEPS}) == ""


def test_a_clock_set_back_loses_one_span_and_no_more(monkeypatch):
    times = iter([0.0, 10.0, 5.0, 7.0])
    monkeypatch.setattr("manta.recipes.budget.time.perf_counter", lambda: next(times))
    clock = Clock()
    assert [clock.now() for _ in range(3)] == [10.0, 10.0, 12.0]


def test_time_is_shared_and_nobody_s_least_steps_are_taken():
    assert seconds_for(1000.0, [1.0, 1.0], [0.8, 0.2], least=50) == 800.0
    assert seconds_for(110.0, [1.0, 1.0], [0.8, 0.2], least=50) == 60.0
    assert seconds_for(-5.0, [1.0, 1.0], [0.8, 0.2], least=50) == 50.0


def test_a_resumed_run_may_be_given_more_time_and_not_less(tmp_path, monkeypatch):
    monkeypatch.setattr(Planner, "_seconds_per_step", lambda self, spec: 0.05)
    run = tmp_path / "run"
    finish(TrainingRun(recipe(num_steps=None, time_budget="100s", family="ar"), run), 3)
    with pytest.raises(UsageError, match="more and not less"):
        TrainingRun(None, run, resume=True, time_budget="10s")
    before = json.loads((run / "plan.json").read_text())["teacher"]
    again = finish(TrainingRun(None, run, resume=True, time_budget="900s"), 1)[0]
    assert again.step == 4 and again.num_steps > 3 * before


def test_a_stage_that_turns_out_slower_is_cut_to_its_time(tmp_path, monkeypatch):
    """Steps of three seconds where a hundredth was measured: the run ends about when it should."""
    monkeypatch.setattr(Planner, "_seconds_per_step", lambda self, spec: 0.01)
    few = {"teacher": {"depth": 1}, "checkpoint_minutes": 60.0}
    run = TrainingRun(recipe(num_steps=None, time_budget="300s", family="ar", **few), tmp_path / "run")
    original = RunLog.row

    def log(self, step, row):
        original(self, step, row)
        run.clock.add(3.0)

    monkeypatch.setattr(RunLog, "row", log)
    events = list(run.events())
    steps = [event for event in events if isinstance(event, Progress)]
    assert steps[0].num_steps > 10_000 and LEAST_STEPS <= len(steps) < 220
    assert any(isinstance(event, Note) and "is cut to" in event.text for event in events)


@pytest.mark.slow
def test_kill_at_random_moments_ends_on_the_same_weights(tmp_path):
    """`kill -9` while anything may be under way, also a checkpoint being written; then resume until it is done."""
    finish(TrainingRun(recipe(num_steps=44), tmp_path / "whole"))
    rng, out, first = random.Random(0), tmp_path / "run", tmp_path / "recipe.toml"
    first.write_text(_toml({**TINY, "num_steps": 44}))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for target in (2, 17, 32):
        source = ["--resume"] if (out / "recipe.json").exists() else [str(first)]
        command = [sys.executable, "-m", "manta", "train", *source, "--out", str(out)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
        while process.poll() is None and not _reached(out, target):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(TrainingRun(None, out, resume=True))
    assert same(tmp_path / "whole", out)


def _reached(out: Path, step: int) -> bool:
    return any(int(folder.name[5:]) >= step for folder in (out / "checkpoints").glob("step-*"))


def _toml(tree: dict, prefix: str = "") -> str:
    plain = [f"{k} = {json.dumps(v)}" for k, v in tree.items() if not isinstance(v, dict)]
    tables = [f"[{prefix}{k}]\n" + _toml(v, f"{prefix}{k}.") for k, v in tree.items() if isinstance(v, dict)]
    return "\n".join([*plain, *tables]) + "\n"


@pytest.mark.parametrize(
    "wrong",
    [
        {"family": "ar", "warm_start": True},
        {"warm_start": True, "shares": {"teacher": 0.0}},
        {"consensus": "teacher", "shares": {"teacher": 0.0}},
    ],
)
def test_a_teacher_that_cannot_be_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="teacher"):
        finish(TrainingRun(recipe(**wrong), tmp_path / "run"), 1)
