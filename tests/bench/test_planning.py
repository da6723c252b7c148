"""A plan says what a real run computes and holds, and sharing it out follows its closed forms."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from manta.bench.planning import Count, Device, StageCount, plan_as_text, planned, predicted, spread
from manta.bench.planning.counting import Held, counted, counted_stage, stage_of
from manta.bench.planning.spreading import PARTS, batches_of_stages, bytes_of_rank, bytes_sent, least_shard, remedies
from manta.bench.planning.tracing import StepMemory
from manta.bench.planning.unread import unread
from manta.cli import main
from manta.config import from_dict
from manta.errors import ConfigError, UsageError
from manta.nets.modulated import task_maps
from manta.recipes import Recipe, TrainingRun
from manta.recipes.states import recipe_class
from manta.runtime import peak_memory_bytes
from manta.training import train_stage

NANO = {"dim": 16, "depth": 1, "heads": 2}
TEXT: dict[str, Any] = {"max_prompt": 8, "max_text": 16, "vocab_size": 512, "batch_tokens": 96}
SHAPES = {"manta": "model", "masked": "masked", "aligned": "aligned", "block": "block", "ar": "teacher"}
SHAPES["decoder"] = "decoder"
NETS = ("dic", "udit", "dit")


def recipe(kind: str, **changes: Any) -> Any:
    """The smallest recipe of a family, of a net of images, of captions or of a restorer."""
    given: dict[str, Any] = {"size": "nano", "num_steps": 8, "train": {"precision": "float32"}}
    state = "text"
    if kind in SHAPES:
        given |= {"family": kind, SHAPES[kind]: NANO, **TEXT}
    elif kind in NETS:
        state, net = "image", {"dit": {"width": 16, "depth": 1, "heads": 2}}.get(kind, {"width": 8})
        given |= {"height": 16, "width": 16, "batch_size": 4, "model": {"net": {"kind": kind, **net}}}
    elif kind == "joint":
        state = kind
        given |= {"height": 8, "width": 8, "batch_size": 4, "model": {**NANO, "patch": 4}}
    else:
        state = "photo"
        given |= {"data": "restore:nowhere", "batch_size": 5, "model": {"tile": 16, "net": {"kind": "dic", "width": 8}}}
    return from_dict(recipe_class(state), {**given, **changes})


QUICK = ("decoder", "dit")
ALL = [
    pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow]) for kind in (*SHAPES, *NETS, "joint", "photo")
]


def saved_by_hooks(found: Any, spec: Any) -> int:
    """Bytes that autograd packs away in a real step, parameters left out, each storage once."""
    kept, own = {}, {p.untyped_storage().data_ptr() for p in spec.model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    stage = stage_of(found, spec, "float32")
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = stage.held.objective(stage.model, next(stage.batches), stage.generator)
    found_bytes = sum(kept.values())
    del loss
    return found_bytes


@pytest.mark.parametrize("kind", ALL)
def test_a_step_without_numbers_counts_what_a_real_one_does(kind):
    """FLOPs, parameters, moments and averages to the last; what is held as autograd saves it, or a little more."""
    asked = recipe(kind)
    count, real = counted(asked), unread(asked, torch.device("cpu"))
    assert [stage.name for stage in count.stages] == [spec.name for spec in real.specs]
    assert sum(count.parameters.values()) == sum(p.numel() for p in real.parts.modules.parameters())
    for stage, spec in zip(count.stages, real.specs, strict=True):
        saved = saved_by_hooks(real, spec)
        assert 0.98 * saved <= stage.saved_bytes <= 1.25 * saved, stage.name
        there = counted_stage(real, spec, "float32")
        if stage.name != "own":  # where what a net has decided is taken at its most
            assert (stage.flops, stage.optimizer_flops) == (there.flops, there.optimizer_flops)
        assert stage.flops >= there.flops > 0
        for name in ("own", "trained", "moments", "average", "other_bytes", "largest_block", "outside_blocks"):
            assert getattr(stage, name) == getattr(there, name), name
        most = 1.5 if stage.name == "own" else 1.02
        assert 0.98 * there.saved_bytes <= stage.saved_bytes <= most * there.saved_bytes
        assert 0.98 * there.peak_bytes <= stage.peak_bytes <= most * there.peak_bytes


@pytest.mark.parametrize("kind", ["low_rank", pytest.param("film", marks=pytest.mark.slow)])
def test_what_tasks_change_is_counted(kind, tmp_path):
    """Their weights and steps, as a real run has them; of data that cannot be read four tasks are taken."""
    file, change = tmp_path / "tasks.jsonl", {**NANO, "modulation": {"kind": kind}}
    rows = [
        {"task": task, "prompt": f"{i} said", "text": f"it was {i}"} for i in range(20) for task in ("cut", "write")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = recipe("ar", data=str(file), teacher=change)
    count, real = counted(asked), unread(asked, torch.device("cpu"))
    assert real.recipe.teacher.tasks == ("cut", "write") and "2 tasks" in count.notes
    plain = sum(counted(recipe("ar", data=str(file))).parameters.values())
    run = TrainingRun(asked, tmp_path / "run", device="cpu")
    run_net = next(run.trials(8)).model
    own = sum(p.numel() for _, part in task_maps(run_net) for p in part.own)
    headings = 3 * NANO["dim"]
    assert sum(count.parameters.values()) == plain + own + headings and own > 0
    [stage], [spec] = count.stages, real.specs
    there = counted_stage(real, spec, "float32")
    assert (stage.flops, stage.optimizer_flops, stage.own) == (there.flops, there.optimizer_flops, there.own)
    assert "4 tasks" in unread(recipe("ar", data="nowhere.jsonl", teacher=change), torch.device("meta")).notes
    with pytest.raises(ConfigError, match="names no task"):
        unread(recipe("ar", teacher=change), torch.device("meta"))


def test_memory_follows_tensors_as_they_come_and_go():
    with StepMemory() as memory:
        first = torch.zeros(1000)
        view = first.view(10, 100)[2:]
        assert memory.live == 4000
        second = view + 1
        assert (memory.live, memory.peak) == (7200, 7200)
        del first, view
        assert (memory.live, memory.peak) == (3200, 7200)
        memory.restart()
        second.add_(1)
        assert (memory.live, memory.peak) == (3200, 3200)


def test_predicted_bytes_are_those_of_a_stage_of_a_run(tmp_path):
    asked = recipe("ar", num_examples=300, max_prompt=64, max_text=48)
    assert isinstance(asked, Recipe)
    run = TrainingRun(asked, tmp_path / "run", device="cpu")
    stage = next(run.trials(8))
    next(train_stage(stage))
    told = predicted(replace(asked, vocab_size=run.recipe.teacher.vocab_size), 1, "none")
    size = {name: sum(each.nbytes for each in tensors.values()) for name, tensors in stage.tensors().items()}
    assert tuple(told) == PARTS
    assert told["parameters"] == told["gradients"] == sum(p.nbytes for p in stage.model.parameters())
    assert (told["moments"], told["average"], told["buffers"]) == (size["optimizer"], size["average"], 0)


# Sharing out


def held(rows: int) -> tuple[Held, ...]:
    return (Held((rows, 8), 4), Held((rows,), 4))


STAGE = StageCount(
    name="words",
    share=1.0,
    elements=1000,
    rows=10,
    flops=8 * 10**12,
    optimizer_flops=10**12,
    saved_bytes=5 * 10**9,
    peak_bytes=6 * 10**9,
    own=held(1 << 24),
    trained=held(1 << 24),
    moments=(*held(1 << 24), *held(1 << 24), Held((), 4)),
    average=held(1 << 24),
    other_bytes=1000,
    largest_block=10**8,
    outside_blocks=2 * 10**7,
)
WEIGHTS = 4 * 9 << 24
LABELS: Any = dict.fromkeys(("flops", "memory", "bandwidth"), "data sheet") | dict.fromkeys(
    ("network", "efficiency"), "assumed"
)
DEVICE = Device(name="a GPU", flops=1e15, memory=8e9, bandwidth=4e11, efficiency=0.5, labels=LABELS)


def count_of(*stages: StageCount, **changes: Any) -> Count:
    return Count(recipe("masked", num_steps=100, **changes), "tokens", {"model.trunk": 9 << 24}, stages, ("no data",))


def test_the_largest_part_of_a_tensor_has_the_rows_that_are_left_over():
    assert [Held((10, 3), 4).of_rank(world) for world in (1, 2, 3, 4, 10, 64)] == [120, 60, 48, 36, 12, 12]
    assert Held((), 4).of_rank(8) == 4


@pytest.mark.parametrize("shard", ["none", "grad", "full"])
def test_bytes_of_a_rank(shard):
    alone = bytes_of_rank(STAGE, 1, shard)
    assert alone == {
        "parameters": WEIGHTS + 1000,
        "gradients": WEIGHTS,
        "moments": 2 * WEIGHTS + 4,
        "average": WEIGHTS,
        "activations": STAGE.saved_bytes,
        "workspace": STAGE.peak_bytes - STAGE.saved_bytes - WEIGHTS,
        "buffers": 0,
    }
    for world in (2, 8, 64, 1 << 16):
        found, divisor = bytes_of_rank(STAGE, world, shard), 1 if shard == "none" else world
        for name, whole in (("parameters", 1000), ("gradients", 0), ("moments", 4), ("average", 0)):
            assert (found[name] - whole) * divisor == alone[name] - whole, "it divides exactly"
        assert (found["activations"], found["workspace"]) == (alone["activations"], alone["workspace"])
        buffers = {"none": WEIGHTS, "grad": WEIGHTS + 10**8, "full": 2 * 10**7 + 3 * 10**8}
        assert found["buffers"] == buffers[shard]


def test_bytes_that_are_sent():
    half = replace(STAGE, trained=STAGE.trained[:1])
    gradients = 4 * 8 << 24
    assert bytes_sent(half, 4, "none", 3) == 1.5 * gradients, "once a step, however many batches it has"
    assert bytes_sent(half, 4, "grad", 3) == pytest.approx(3 * 0.75 * (WEIGHTS + gradients))
    assert bytes_sent(half, 4, "full", 3) == pytest.approx(3 * 0.75 * (2 * WEIGHTS + gradients))
    assert [bytes_sent(half, 1, shard, 1) for shard in ("none", "grad", "full")] == [0, 0, 0]


def test_seconds_steps_hours_and_cost():
    count = count_of(STAGE, train={"accumulate": 8})
    row = spread(count, DEVICE, 4, "none", price=2.0)
    computing, sending = (2 * 8e12 + 1e12) / 5e14, 1.5 * WEIGHTS / 4e11
    assert row.seconds_a_step == pytest.approx(computing + sending)
    assert row.overlapped_seconds_a_step == pytest.approx(max(computing, sending))
    assert (row.steps, row.accumulate, row.elements_a_step) == (100, 8, 8000)
    assert row.hours == pytest.approx(100 * (computing + sending) / 3600) and row.cost == pytest.approx(
        8 * (row.hours or 0)
    )
    many = spread(count, DEVICE, 16, "none")
    assert (many.steps, many.accumulate, many.cost) == (50, 16, None)
    slow = 2 * 15 / 16 * WEIGHTS / 5e10
    assert many.seconds_a_step == pytest.approx(9e12 / 5e14 + slow), "beyond a machine, the network counts"
    assert spread(count, DEVICE, 4, "none", elements=4e6).steps == 500


def test_stages_share_what_is_learned():
    count = count_of(replace(STAGE, share=1.0, elements=500), replace(STAGE, share=3.0, elements=1500))
    assert batches_of_stages(count, None) == [25, 75]
    batches = batches_of_stages(count, 125_000.0)
    assert batches is not None and batches == [25, 75]
    open_ = Count(replace(count.recipe, num_steps=None), "tokens", {}, count.stages, ())
    assert batches_of_stages(open_, None) is None and spread(open_, DEVICE, 1, "none").hours is None


def test_more_gpus_never_need_more_memory_and_sharing_more_never_holds_more():
    for shard in ("grad", "full"):
        kept = [sum(bytes_of_rank(STAGE, 1 << k, shard).values()) for k in range(1, 17)]
        assert kept == sorted(kept, reverse=True)
    for world in (2, 64):
        by_shard = [bytes_of_rank(STAGE, world, shard) for shard in ("none", "grad", "full")]
        assert sum(by_shard[2].values()) < sum(by_shard[1].values()) < sum(by_shard[0].values())


def test_what_does_not_fit_is_told_what_would():
    count, device = count_of(STAGE), replace(DEVICE, memory=7.3e9)
    assert not spread(count, device, 2, "none").fits
    assert (least_shard(count, device, 2), least_shard(count, device, 8)) == ("full", "grad")
    shard, batch = remedies(count, device, spread(count, device, 8, "none"))
    assert (shard, batch) == ("--shard grad", "batches of about 6 rows, 600 tokens (estimated)")
    tight = replace(DEVICE, memory=2.5e9)
    [many] = remedies(count, tight, spread(count, tight, 1, "none"))
    assert many == "2 GPUs with --shard full and batches of about 1 rows, 100 tokens (estimated)"
    nothing = replace(DEVICE, memory=1e8)
    assert remedies(count, nothing, spread(count, nothing, 1, "none")) == []


PLAN = """\
masked, nano, on builtin:weather: 150,994,944 parameters (counted)
  model.trunk 150,994,944

A batch of each stage (counted; no data)
stage  tokens a batch  GFLOP a batch  GFLOP an update  GB between passes
words           1,000          8,000            1,000                  5

A GPU: a GPU
  1,000 TFLOP/s (data sheet), of which training reaches 50% (assumed)
  8 GB (data sheet); 400 GB/s between 8 of a machine (data sheet), 50 GB/s to others (assumed)

GB a rank at most (counted; what passes between ranks assumed)
GPUs  shard  parameters  gradients  moments  average  activations  workspace  buffers  in all  fits
   2  none        0.604      0.604     1.21    0.604            5      0.396    0.604    9.02  no
   2  grad        0.302      0.302    0.604    0.302            5      0.396    0.704    7.61  yes
   2  full        0.302      0.302    0.604    0.302            5      0.396     0.32    7.23  yes

Time, computing and sending one after the other, or at once (from the figures above)
GPUs  shard  tokens a step  GB sent a step  s a step  s at once  steps     hours     cost
   2  none           2,000           0.604    0.0195      0.018     50  0.000271  0.00163
   2  grad           2,000           0.604    0.0195      0.018     50  0.000271  0.00163
   2  full           2,000           0.906    0.0203      0.018     50  0.000281  0.00169

Does not fit: 2 GPUs with --shard none, 9.02 GB of 8. What would: --shard grad; batches of about 8 rows, 800 tokens (estimated).
A step has a batch for each GPU at least: train.accumulate grows from 1 to 2, and steps become fewer."""  # noqa: E501


def test_the_text_of_a_plan():
    count = count_of(STAGE)
    text = plan_as_text(count, DEVICE, planned(count, DEVICE, gpus=2, price=3.0))
    assert text == PLAN


# The command


def test_the_command_says_a_plan(capsys):
    given = ["builtin:weather", "--family", "ar", "--num-steps", "10", "teacher.dim=16", "teacher.depth=1"]
    given += ["teacher.heads=2", "vocab_size=512", "batch_tokens=200", "--gpu", "h100", "--price", "2"]
    assert main(["plan", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["gpus"] for row in found["rows"]] == [1 << k for k in range(11)]
    assert found["device"]["labels"] == {
        **dict.fromkeys(("flops", "memory", "bandwidth"), "data sheet"),
        **dict.fromkeys(("network", "per_machine", "efficiency"), "assumed"),
    }
    assert all(row["total_bytes"] == sum(row["bytes"].values()) and row["fits"] for row in found["rows"])
    assert main(["plan", *given, "--gpus", "4", "--device-flops", "1e14", "--memory", "1e6"]) == 0
    text = capsys.readouterr().out
    assert main(["plan", *given, "--tasks", "low_rank"]) == 2
    assert "names no task" in capsys.readouterr().err
    assert "100 TFLOP/s (stated)" in text and "Does not fit: 4 GPUs with --shard full" in text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "say what to plan"),
        (["builtin:weather", "--gpus", "0"], "between 1 and 65,536"),
        (["builtin:weather", "--gpus", "65537"], "between 1 and 65,536"),
        (["builtin:weather", "--shard", "half"], "--shard"),
        (["builtin:weather", "--price", "-1"], "above 0"),
        (["builtin:weather", "--tokens", "0"], "above 0"),
        (["builtin:weather", "--gpu", "h1000"], "did you mean 'h100'"),
    ],
)
def test_nonsense_is_refused_before_anything_is_counted(given, told, capsys):
    assert main(["plan", *given]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_other_nonsense_is_refused():
    from manta.bench.planning import device_of

    count = count_of(STAGE)
    with pytest.raises(UsageError, match="'h200'"):
        device_of("h2000", {}, count, count.recipe)
    for name, value in (("flops", 0.0), ("memory", -1.0), ("bandwidth", float("inf")), ("efficiency", 1.5)):
        with pytest.raises(UsageError, match=name):
            device_of("h100", {name: value}, count, count.recipe)
    for given in ({"price": 0.0}, {"elements": float("nan")}):
        with pytest.raises(UsageError, match="above 0"):
            spread(count, DEVICE, 1, "none", **given)
    with pytest.raises(UsageError, match="another model"):
        counted(recipe("ar", drafter_of="somewhere"))


def test_this_machine_is_measured_where_nothing_is_stated():
    from manta.bench.planning import device_of

    asked = recipe("decoder")
    device = device_of(None, {"memory": 1e9}, counted(asked), asked)
    assert 0 < device.efficiency <= 1 and device.flops > 0
    labels = device.labels
    assert (labels["flops"], labels["efficiency"], labels["memory"]) == ("measured", "measured", "stated")


@pytest.mark.slow
def test_data_that_are_not_there_are_assumed():
    count = counted(recipe("manta", data="nowhere.jsonl"))
    assert [stage.name for stage in count.stages] == ["teacher", "policy", "own"]
    assert "nowhere.jsonl was not read" in count.notes[0]


@pytest.mark.slow
def test_a_large_shape_is_planned_without_its_memory():
    shape = {"dim": 4096, "depth": 32, "heads": 32}
    asked = recipe("decoder", decoder=shape, vocab_size=32768, max_text=256, max_prompt=256, batch_tokens=512)
    before = peak_memory_bytes()
    assert predicted(asked, 64, "full")["parameters"] > 6e9 * 4 / 64
    assert peak_memory_bytes() - before < 1e9
