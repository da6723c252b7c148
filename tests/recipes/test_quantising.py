"""Quantised models of every family: what is stored, what they write, and what is refused."""

import json
import random
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from manta.cli import main
from manta.config import from_dict
from manta.errors import ConfigError, MantaError, ModelError, UsageError
from manta.evaluation import evaluation_set, likelihood
from manta.families.events import GenerateOptions, Request
from manta.families.image_flow import DrawRequest
from manta.families.joint_flow import JointFlow
from manta.families.phrases import FEATURES
from manta.families.restorer import Restorer, RestorerModel
from manta.hub import load, save_model
from manta.image.degradations import TASKS
from manta.nets.grid import UditNet
from manta.nets.integer_nets import Fold
from manta.nets.integers import IntegerEmbedding, count_parameters, integer_maps
from manta.recipes import TrainingRun, quantising
from manta.recipes.quantised_page import summary
from manta.recipes.quantising import QuantisationPlan, merged_maps, quantise
from manta.recipes.restore_recipe import RestoreRecipe, resolve_restore
from manta.text import read

from ..families.conftest import MAKERS, WORDS, make_aligned
from .test_image_conversion import trained
from .test_joint_run import CODEC
from .test_joint_run import model as joint_model
from .test_restore_run import NET, photograph, photos, recipe  # noqa: F401

VOCABULARY = WORDS[0].split(" ")


WIDE: dict[str, Any] = {"dim": 64}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(quantising, "COMPARED", 3)
    monkeypatch.setattr(quantising, "MEASURED", 8)


def pairs(number: int) -> list[dict[str, str]]:
    draw = random.Random(0)
    rows = [(draw.sample(VOCABULARY, 3), draw.sample(VOCABULARY, 6)) for _ in range(number)]
    return [{"prompt": " ".join(prompt), "text": " ".join(text)} for prompt, text in rows]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs(40))))
    return str(file)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for family, make in MAKERS.items():
        found[family] = tmp_path_factory.mktemp(family) / "model"
        save_model(found[family], make(), recipe={}, card="# A model\n")
    return found


def written(lm, num=6, **options):
    asked = [Request(prompt=" ".join(VOCABULARY[i : i + 3]), seed=i) for i in range(num)]
    done = [event for event in lm.generate(asked, GenerateOptions(**options), batch_size=4) if event.kind == "done"]
    return [(event.tokens, event.confidence) for event in sorted(done, key=lambda event: event.index)]


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w8"])
@pytest.mark.parametrize("family", MAKERS)
def test_a_quantised_model_is_smaller_and_writes_what_its_folder_writes(family, bits, folders, data, tmp_path):
    found = quantise(folders[family], data, QuantisationPlan(bits=bits, num=12, calls=(4,)))
    assert found.compared.task and found.compared.before > 0
    apart = abs(found.compared.after - found.compared.before) / found.compared.before
    assert apart < (0.5 if bits == "w4a8" else 0.15)  # weights at random are more sensitive than learned ones
    save_model(tmp_path / "new", found.model, recipe={}, card="")
    again = load(tmp_path / "new")
    assert again.quantised == found.model.quantised
    assert written(again) == written(found.model)
    ints = [
        value for value in load_file(tmp_path / "new" / "model.safetensors").values() if not value.is_floating_point()
    ]
    assert sum(value.numel() for value in ints) > 0.3 * count_parameters(load(folders[family]).model) / 2
    assert {value.dtype for value in ints} == ({torch.int8, torch.uint8} if bits == "w4a8" else {torch.int8})
    assert count_parameters(again.model) == pytest.approx(count_parameters(load(folders[family]).model), rel=0.01)


def test_a_model_that_reads_both_ways_is_compared_in_both(data, folders, tmp_path):
    """Its left-to-right reading as our evaluator measures it, before and after."""
    save_model(tmp_path / "both", make_aligned(causal=True), recipe={}, card="")
    file, held = tmp_path / "pairs.jsonl", tmp_path / "held.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs(200))))
    found = quantise(tmp_path / "both", str(file), QuantisationPlan(num=12, calls=(4,)))
    assert found.compared.reading is not None
    texts = [{"prompt": example.prompt, "text": example.text} for example in read(str(file), "dev", 8)]
    assert len(texts) > 1
    held.write_text("\n".join(map(json.dumps, texts)))
    for lm, told in zip((load(tmp_path / "both"), found.model), found.compared.reading, strict=True):
        assert likelihood(lm, evaluation_set(str(held), "all")).nats_per_token == pytest.approx(told, rel=1e-4)
    before, after = found.compared.reading
    assert 0 < abs(after - before) < 0.15 * before
    assert sum("left to right" in line for line in summary(found, 1, 1)) == 1
    plain = quantise(folders["aligned"], data, QuantisationPlan(num=4, calls=(4,)))
    assert plain.compared.reading is None and "left to right" not in str(summary(plain, 1, 1))


def test_texts_of_a_quantised_model_do_not_depend_on_their_batch(folders, data):
    model = quantise(folders["manta"], data, QuantisationPlan(num=12, calls=(4, 8), groups="auto")).model
    assert any(each.spec.groups > 1 for _, each in integer_maps(model.model))
    assert any(isinstance(part, Fold) for part in model.model.modules())
    asked = [Request(prompt=" ".join(VOCABULARY[i : i + 1 + i % 4]), seed=i) for i in range(9)]

    def texts(size):
        done = model.generate(asked, GenerateOptions(num_steps=6), batch_size=size)
        return {event.index: (event.tokens, event.confidence) for event in done if event.kind == "done"}

    assert texts(1) == texts(2) == texts(9)


def test_blanks_are_filled_where_known_latents_are_at_another_time(folders, data):
    model = quantise(folders["manta"], data, QuantisationPlan(num=12, calls=(4, 8), groups="auto")).model
    text = "the cat ____ on a mat"
    filled = model.write("the cat", infill=text, num_steps=6)
    assert filled.startswith("the cat") and filled.endswith("on a mat") and "____" not in filled


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    shapes: dict[str, dict[str, Any]] = {
        "dic": {"kind": "dic", "width": 16, "depths": (1, 1, 1, 1, 1)},
        "dit": {"kind": "dit", "width": 32, "depth": 1, "heads": 2},
        "udit": {"kind": "udit", "width": 16, "depths": (1, 1, 1, 1, 1), "heads": 1},
    }
    return {kind: trained(tmp_path_factory.mktemp(kind) / "run", net=net) for kind, net in shapes.items()}


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w8"])
@pytest.mark.parametrize("kind", ["dic", "dit", "udit"])
def test_quantised_image_flows_draw_nearly_the_same(kind, bits, nets, tmp_path):
    plan = QuantisationPlan(bits=bits, num=6, calls=(3,))
    found = quantise(nets[kind], "builtin:shapes", plan)
    assert found.compared.task and found.compared.same < 40
    assert found.compared.after == pytest.approx(found.compared.before, rel=0.05)
    save_model(tmp_path / "new", found.model, recipe={}, card="")
    again = load(tmp_path / "new")
    one, other = (each.draw(num_samples=2, num_steps=3).astype(int) for each in (again, found.model))
    assert np.array_equal(one, other) if kind != "udit" else np.abs(one - other).max() < 5  # merged maps are rounded


def test_maps_of_a_udit_are_merged_and_draw_the_same(nets):
    flow: Any = load(nets["udit"])
    net: Any = merged_maps(flow.model)
    assert isinstance(net.net, UditNet) and not net.config.net.stacked and flow.model.config.net.stacked
    noise, told, _ = flow.begin([DrawRequest()])
    with torch.no_grad():
        one = flow.model.act(noise, torch.zeros(1), cond=told).clean
        torch.testing.assert_close(net.act(noise, torch.zeros(1), cond=told).clean, one, rtol=1e-4, atol=1e-5)


def test_depthwise_convolutions_and_all_maps_of_a_udit_are_integers(nets, tmp_path):
    model = quantise(nets["udit"], None, QuantisationPlan(bits="w4a8", num=2, calls=(2,))).model
    kinds = {name: (each.bits, each.inputs) for name, each in model.quantised.items()}
    assert kinds["net.stages.2.0.network.kernels.0"] == kinds["net.stages.2.0.attention.mix"] == (8, "float")
    assert kinds["net.stages.2.0.network.inner.0"] == kinds["net.stages.2.0.network.outer.0"] == (4, "static")


def test_an_image_flow_needs_no_data(nets):
    assert quantise(nets["dic"], None, QuantisationPlan(num=2, calls=(2,))).compared.task == ""


def test_dynamic_inputs_and_a_number_of_groups(folders, data):
    plan = QuantisationPlan(num=8, calls=(4,), inputs="dynamic")
    assert {each.inputs for each in quantise(folders["manta"], data, plan).model.quantised.values()} == {"dynamic"}
    plan = QuantisationPlan(num=8, calls=(8,), groups=3)
    assert {each.groups for each in quantise(folders["manta"], data, plan).model.quantised.values()} == {1, 3}


def test_what_cannot_be_quantised_is_refused(folders, data, tmp_path, nets):
    with pytest.raises(UsageError, match="--data"):
        quantise(folders["manta"], None, QuantisationPlan(num=4, calls=(4,)))
    made = quantise(folders["ar"], data, QuantisationPlan(num=4, calls=(4,)))
    save_model(tmp_path / "new", made.model, recipe={}, card="")
    with pytest.raises(ModelError, match="quantised already"):
        quantise(tmp_path / "new", data, QuantisationPlan())
    for given in (["--inherit"], ["--teacher"], ["--drafter"]):
        command = ["train", data, "--out", str(tmp_path / "run"), "--num-steps", "4", *given, str(tmp_path / "new")]
        assert main(command) == 1
    command = ["convert", str(tmp_path / "new"), "--operator", "linear", "--data", data, "--out", str(tmp_path / "run")]
    assert main(command) == 1
    wrongs: tuple[dict[str, Any], ...] = (
        {"num": 0}, {"groups": 0}, {"groups": 65}, {"calls": ()}, {"calls": (0,)}, {"bits": "w8", "groups": 2},
    )  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            QuantisationPlan(**wrong)


@pytest.fixture(scope="module")
def small(folders, data, tmp_path_factory):
    made = quantise(folders["manta"], data, QuantisationPlan(bits="w4a8", num=8, calls=(4,), groups=2))
    folder = tmp_path_factory.mktemp("small") / "model"
    save_model(folder, made.model, recipe={}, card="")
    return folder


def copied(folder, to):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize(
    "change",
    [
        lambda q: q.clear(),
        lambda q: q.popitem(),
        lambda q: q.update({"nothing": {}}),
        lambda q: q.update({next(iter(q)): {"bits": 5}}),
        lambda q: q.update({next(iter(q)): {"groups": 10**9}}),
        lambda q: q.update({next(iter(q)): {"groups": "two"}}),
        lambda q: q.update({next(iter(q)): {"harm": 1}}),
        lambda q: q.update({next(iter(q)): 7}),
        lambda q: q.update({"field.trunk.blocks.0.mlp.out": {"bits": 4, "shift": True, "folded": True}}),
        lambda q: q.update({"memory_encoder.trunk.blocks.0.mlp.out": {"bits": 4, "groups": 2}}),
        lambda q: q.update({"field.trunk.norm": {}}),
    ],
)
def test_a_folder_whose_specification_does_not_fit_is_refused(change, small, tmp_path, capsys):
    folder = copied(small, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    change(config["quantised"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load(folder)
    assert main(["generate", str(folder), "--prompt", "the cat"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("told", [[], "w8a8", 3, True])
def test_a_folder_whose_specification_is_no_table_is_refused(told, small, tmp_path):
    folder = copied(small, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantised": told}))
    with pytest.raises(ModelError):
        load(folder)


def test_weights_of_another_kind_are_refused(small, tmp_path):
    weights = load_file(small / "model.safetensors")
    packed = next(name for name, value in weights.items() if value.dtype is torch.uint8)
    step = next(name for name in weights if name.endswith(".step"))
    wrongs = (
        {packed: weights[packed].float()},
        {packed: weights[packed].to(torch.int8)},
        {packed: weights[packed][:, :-1].contiguous()},
        {step: torch.full_like(weights[step], float("nan"))},
        {step: weights[step].to(torch.int8)},
    )
    for number, wrong in enumerate(wrongs):
        folder = copied(small, tmp_path / str(number))
        save_file({**weights, **wrong}, folder / "model.safetensors")
        with pytest.raises(ModelError):
            load(folder)


def test_the_verb_writes_a_folder_with_a_page(folders, data, tmp_path, capsys):
    out = tmp_path / "new"
    command = ["quantize", str(folders["manta"]), "--data", data, "--num", "8", "--calls", "4,8", "--out", str(out)]
    assert main([*command, "--bits", "w4a8", "--groups", "2"]) == 0
    told = capsys.readouterr().out
    assert "maps" in told and "MB" in told and "held-out texts" in told
    card, page = (out / "README.md").read_text(), (out / "quantised.html").read_text()
    assert card.startswith("# A model") and "w4a8" in card and "field.trunk.blocks.0.operator.qkv" in page
    assert "<svg" in page and "group 2" in page
    assert main(["generate", str(out), "--prompt", "the cat"]) == 0
    capsys.readouterr()
    for wrong in (
        command,  # the folder is there
        [*command[:-1], str(tmp_path / "other"), "--groups", "some"],
        [*command[:-1], str(tmp_path / "other"), "--calls", "4,x"],
        command[:-2],
    ):
        assert main(wrong) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["manta", "masked", "ar"])
def test_a_quantised_model_can_be_diagnosed(family, folders, data, tmp_path, capsys):
    made = quantise(folders[family], data, QuantisationPlan(num=8, calls=(4,)))
    made.model.write("the cat", num_steps=4) if family != "ar" else made.model.write("the cat")
    save_model(tmp_path / "new", made.model, recipe={}, card="")
    command = ["diagnose", str(tmp_path / "new"), "--data", data, "--num-prompts", "2", "--num-steps", "4"]
    assert main([*command, "--out", str(tmp_path / "page")]) == 0, capsys.readouterr().err
    assert (tmp_path / "page" / "diagnose.html").exists()


def test_seeds_and_budgets_that_cannot_be_are_refused(folders, data, tmp_path, capsys):
    for wrong in (["--seed", "9" * 30], ["--seed", "-1"], ["--calls", "99999"], ["--groups", "9" * 5000]):
        command = [
            "quantize",
            str(folders["manta"]),
            "--data",
            data,
            "--num",
            "4",
            *wrong,
            "--out",
            str(tmp_path / "x"),
        ]
        assert main(command) in (1, 2)
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    with pytest.raises(ConfigError, match="dynamic"):
        QuantisationPlan(inputs="dynamic", groups=2)


def test_data_of_another_kind_are_refused_before_the_work(nets, data):
    with pytest.raises(MantaError):
        quantise(nets["dic"], data, QuantisationPlan(num=2, calls=(2,)), lambda line: pytest.fail(line))


RESTORERS: dict[str, dict[str, Any]] = {
    "low_rank": {"net": NET, "modulation": {"kind": "low_rank", "rank": 2}},
    "film": {"net": NET, "modulation": {"kind": "film"}},
    "udit": {"net": {"kind": "udit", "width": 16, "depths": [1, 1, 1, 1, 1], "heads": 1}},
    "dit, one fault": {"net": {"kind": "dit", "width": 32, "depth": 1, "heads": 2}, "modulation": {"kind": "none"}},
}


def restorer_of(kind, folder):
    """One of random weights, whose faults differ."""
    changes: dict[str, Any] = {"only": "rain"} if "one" in kind else {}
    told = {"num_steps": 4, "model": {"tile": 16, **RESTORERS[kind]}, **changes}
    shape = resolve_restore(from_dict(RestoreRecipe, told))
    torch.manual_seed(0)
    net = RestorerModel(shape.model).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape))
    save_model(folder, Restorer(net, torch.zeros(len(TASKS), FEATURES + 1)), recipe={}, card="# A restorer\n")
    return folder


@pytest.mark.parametrize(
    "kind, bits",
    [("low_rank", "w8a8"), ("low_rank", "w4a8"), ("film", "w8a8"), ("udit", "w4a8"), ("dit, one fault", "w4a8")],
)
def test_a_quantised_restorer_is_smaller_and_restores_nearly_the_same(kind, bits, photos, tmp_path):  # noqa: F811
    source = restorer_of(kind, tmp_path / "model")
    found = quantise(source, f"restore:{photos}", QuantisationPlan(bits=bits, num=10))
    assert "decibels" in found.compared.task and abs(found.compared.after - found.compared.before) < 1.5
    assert found.compared.same < (16 if bits == "w4a8" else 4)
    names = {"decibels, rain"} if "one" in kind else {f"decibels, {name}" for name in TASKS}
    assert set(found.compared.others) == names
    save_model(tmp_path / "new", found.model, recipe={}, card="")
    again = load(tmp_path / "new")
    assert again.quantised == found.model.quantised
    photo, before = photograph(7, 20, 37), load(source)
    for name in again.faults:
        one, other = again.restore(photo, task=name).astype(int), found.model.restore(photo, task=name).astype(int)
        assert np.abs(one - other).max() < 6  # what has not become integers is rounded to bfloat16 in the folder
        assert np.abs(one - before.restore(photo, task=name).astype(int)).mean() < (16 if bits == "w4a8" else 4)
    size, whole = ((folder / "model.safetensors").stat().st_size for folder in (tmp_path / "new", source))
    assert size < 0.9 * whole  # of bfloat16; names take a third of so small a folder


def test_a_net_that_has_run_behind_folded_modulation_can_be_copied(photos, tmp_path):  # noqa: F811
    shape = {"kind": "dit", "width": 64, "depth": 1, "heads": 2}
    told = {"num_steps": 4, "model": {"tile": 16, "net": shape, "modulation": {"kind": "none"}}}
    torch.manual_seed(0)
    net = RestorerModel(resolve_restore(from_dict(RestoreRecipe, told)).model).eval()
    restorer = Restorer(net, torch.zeros(len(TASKS), FEATURES + 1))
    save_model(tmp_path / "model", restorer, recipe={}, card="# A restorer\n")
    found: Any = quantise(tmp_path / "model", f"restore:{photos}", QuantisationPlan(num=10))
    assert any(isinstance(part, Fold) for part in found.model.model.modules())
    state, task = torch.rand(2, 256, 3), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        once = found.model.model(state, task)
        assert torch.equal(deepcopy(found.model.model)(state, task), once)
    assert found.model.cleaned(state, 1).isfinite().all()


def test_figures_say_whether_photographs_were_held_out(tmp_path):
    for seed in range(2):
        (tmp_path / "two").mkdir(exist_ok=True)
        Image.fromarray(photograph(seed)).save(tmp_path / "two" / f"{seed}.png")
    found = quantise(restorer_of("film", tmp_path / "model"), f"restore:{tmp_path / 'two'}", QuantisationPlan(num=5))
    assert found.compared.task == "decibels of training tiles"


def test_nets_of_faults_are_not_those_of_the_model_before(photos, tmp_path):  # noqa: F811
    before: Any = load(restorer_of("low_rank", tmp_path / "model"))
    before._net_of(0)
    after = before.with_net(before.model)
    assert after._merged == {} and list(before._merged) == [0]


def test_the_verb_takes_restorers_and_a_run_does_not_go_on_with_integers(photos, tmp_path, capsys):  # noqa: F811
    source, out, data = restorer_of("low_rank", tmp_path / "model"), tmp_path / "new", f"restore:{photos}"
    assert main(["quantize", str(source), "--data", data, "--num", "5", "--out", str(out)]) == 0
    told, card = capsys.readouterr().out, (out / "README.md").read_text()
    assert "decibels, snow" in told and "what both restore is" in told and "calls" not in card
    Image.fromarray(photograph(3)).save(tmp_path / "photo.png")
    command = ["restore", str(out), str(tmp_path / "photo.png"), "--task", "rain", "--out", str(tmp_path / "clean.png")]
    assert main(command) == 0 and main(["doctor", str(out)]) == 0
    assert main(["evaluate", str(out), "--data", data]) == 0
    capsys.readouterr()
    with pytest.raises(ModelError, match="quantised"):
        list(TrainingRun(recipe(photos, begin_from=str(out)), tmp_path / "run").events())
    assert not (tmp_path / "run").exists()
    for wrong in (["--data", str(photos)], ["--data", data, "--groups", "2"], []):
        assert main(["quantize", str(source), *wrong, "--out", str(tmp_path / "x")]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Images with captions of the words that a model of captions and images knows, and such a model."""
    place = tmp_path_factory.mktemp("captioned")
    draw, rows = random.Random(0), []
    for number in range(30):
        words = f"a {draw.choice(['red', 'blue'])} {draw.choice(['circle', 'square'])}"
        Image.fromarray(photograph(number, 8, 12)).save(place / f"{number}.png")
        rows.append(f"{number}.png,{words}")
    (place / "captions.csv").write_text("\n".join(["file,caption", *rows]))
    folder = tmp_path_factory.mktemp("joint") / "model"
    save_model(folder, JointFlow(joint_model(dim=64), CODEC), recipe={}, card="# A model\n")
    return folder, f"images:{place}"


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w8"])
def test_a_quantised_model_of_captions_and_images_draws_and_describes(bits, captioned, tmp_path):
    folder, data = captioned
    found = quantise(folder, data, QuantisationPlan(bits=bits, num=9, calls=(3,)))
    assert found.compared.after == pytest.approx(found.compared.before, rel=0.1 if bits == "w4a8" else 0.03)
    ((before, after),) = found.compared.others.values()
    assert after == pytest.approx(before, rel=0.2 if bits == "w4a8" else 0.1)
    assert found.compared.described is not None and found.compared.same < 40
    save_model(tmp_path / "new", found.model, recipe={}, card="")
    again = load(tmp_path / "new")
    one, other = (each.draw("a red circle", num_samples=2, num_steps=3).astype(int) for each in (again, found.model))
    assert np.abs(one - other).max() < 8  # what has not become integers is rounded to bfloat16 in the folder
    assert len(again.describe(one.astype(np.uint8))) == 2
    if bits == "w8a8":
        assert any(isinstance(part, Fold) for part in again.model.modules())
        assert isinstance(again.model.table, IntegerEmbedding)


def test_the_verb_takes_models_of_captions_and_images(captioned, tmp_path, capsys):
    folder, data = captioned
    out = tmp_path / "new"
    command = ["quantize", str(folder), "--data", data, "--num", "6", "--calls", "2"]
    assert main([*command, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "nats a word of held-out captions" in told and "describe alike" in told and "draw in 8 calls" in told
    assert main(["generate", str(out), "--caption", "a blue square", "--out", str(tmp_path / "grid.png")]) == 0
    assert main(["doctor", str(out)]) == 0
    capsys.readouterr()
    assert main([*command, "--groups", "2", "--out", str(tmp_path / "x")]) == 2
    assert "leave groups out" in capsys.readouterr().err
