"""Learning a schedule: the gradient is that of the reward, and the verb writes a model that follows it."""

from itertools import product

import pytest
import torch

from manta.cli import main
from manta.errors import CheckpointError, ConfigError, DataError, UsageError
from manta.families.events import GenerateOptions, Request, finished
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.families.thinking import ThinkingConfig
from manta.hub import card_of, load, save_model
from manta.hub.digest import digest_of
from manta.masked import LearnedConfig
from manta.masked.learned import Learned, Schedule
from manta.recipes import scheduling
from manta.recipes.scheduling import Kept, ScheduleRecipe, _surrogate, learn_schedule
from manta.text import Tokenizer
from manta.text.tasks import SUDOKU4
from manta.training.checkpoint import save_checkpoint

SHAPE = {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 1, "max_prompt": 16, "max_text": 16}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Puzzles enough for the few updates of these tests."""
    monkeypatch.setattr(scheduling, "READ", 600)
    monkeypatch.setattr(scheduling, "MEASURED", 24)


def puzzler(**config) -> MaskedLM:
    torch.manual_seed(0)
    tokenizer = Tokenizer.of_symbols(SUDOKU4.symbols)
    net = MaskedModel(MaskedConfig(vocab_size=tokenizer.vocab_size, absolute_places=True, **SHAPE, **config))
    return MaskedLM(net.eval(), tokenizer)


def test_the_gradient_is_that_of_the_expected_reward():
    """Three places, one of which the policy has no say in; a reward for each set of commitments, all enumerated."""
    torch.manual_seed(0)
    schedule, signs = Schedule(), torch.randn(1, 3, 8)
    for parameter in schedule.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    free = torch.tensor([[True, True, False]])
    reward = {(a, b): 1.0 + 2 * a - 3 * b + 4 * a * b for a, b in product((0, 1), repeat=2)}
    chance = schedule(signs).sigmoid()[0]
    odds = {key: (chance[0] if key[0] else 1 - chance[0]) * (chance[1] if key[1] else 1 - chance[1]) for key in reward}
    expected = torch.autograd.grad(
        torch.stack([odds[key] * reward[key] for key in reward]).sum(), list(schedule.parameters())
    )
    found = [torch.zeros_like(part) for part in schedule.parameters()]
    for key, worth in reward.items():
        policy = Learned(schedule, drawn=True)
        policy.steps = [(signs, torch.tensor([[bool(key[0]), bool(key[1]), True]]), free)]
        parts = torch.autograd.grad(_surrogate(policy, torch.tensor([worth])), list(schedule.parameters()))
        found = [total - odds[key].detach() * part for total, part in zip(found, parts, strict=True)]
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-4)


def test_a_high_price_buys_fewer_calls_and_equal_seeds_the_same_schedule():
    """An untrained model solves nothing, so all that is left to earn is the price of the calls."""
    lm = puzzler()
    free, again = (learn_schedule(lm, "builtin:sudoku4", 0.0, updates=3, seed=3) for _ in range(2))
    dear = learn_schedule(lm, "builtin:sudoku4", 0.5, updates=25, seed=3)
    assert again.decoder == free.decoder and dear.decoder.price == 0.5
    assert free.after.calls == free.before.calls, "with nothing to earn nothing is learned"
    assert dear.after.calls < dear.before.calls - 1


def test_texts_without_a_judge_are_compared_with_slow_ones(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(f'{{"prompt": "{i % 4 + 1}", "text": "{i % 3 + 1}"}}\n' for i in range(40)))
    told = []
    found = learn_schedule(puzzler(), str(file), 0.05, updates=2, tell=told.append)
    assert found.slowly.quality == 1 and 0 < found.after.quality <= 1
    assert [line.split(":")[0] for line in told[:2]] == ["update 1 of 2", "update 2 of 2"] and "measuring" in told[2]
    assert "a word a call" in found.reward


def test_the_verb_writes_a_model_that_follows_its_schedule(tmp_path, capsys):
    lm = puzzler()
    save_model(tmp_path / "model", lm, recipe={}, card="# A model\n", dtype=torch.float32)
    command = ["schedule", str(tmp_path / "model"), "--data", "builtin:sudoku4", "--price", "0.4", "--updates", "3"]
    assert main([*command, "--out", str(tmp_path / "new")]) == 0
    assert "| the learned schedule |" in capsys.readouterr().out
    assert main(["schedule", str(tmp_path / "new"), *command[2:-1], "1", "--out", str(tmp_path / "again")]) == 0
    assert card_of(tmp_path / "again").count("## A learned schedule") == 1
    assert "| held-out prompts |" in card_of(tmp_path / "again")
    taught = load(tmp_path / "new", device="cpu")
    assert isinstance(taught, MaskedLM) and isinstance(taught.decoder, LearnedConfig)
    assert len(taught.decoder.weights) > 0 and card_of(tmp_path / "new").startswith("# A model\n\n## A learned")
    request = [Request(prompt=next(SUDOKU4.examples("test", 1)).prompt)]
    own, named = (finished(taught.generate(request, GenerateOptions(decoder=d, num_steps=99))) for d in ("", "learned"))
    (first,), (second,) = own, named
    assert first.tokens == second.tokens
    with pytest.raises(UsageError, match="learned no schedule"):
        lm.check(GenerateOptions(decoder="learned"))
    assert main([*command, "--out", str(tmp_path / "new")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["schedule", "builtin:e2e", "--data", "builtin:sudoku4", "--out", str(tmp_path / "x")]) == 2
    assert "a schedule is for masked models" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_interrupted_learning_goes_on_as_if_it_had_never_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scheduling, "PROMPTS", 3)
    monkeypatch.setattr(scheduling, "TRIES", 2)
    save_model(tmp_path / "model", puzzler(), recipe={}, card="# A model\n", dtype=torch.float32)
    out, folder = tmp_path / "new", tmp_path / "new.learning"
    command = ["schedule", str(tmp_path / "model"), "--data", "builtin:sudoku4", "--price", "0.4", "--updates", "4"]
    assert main([*command, "--out", str(tmp_path / "at once")]) == 0
    wanted = load(tmp_path / "at once", device="cpu")
    assert not (tmp_path / "at once.learning").exists(), "nothing is left to go on with"

    lm = load(tmp_path / "model", device="cpu")
    assert isinstance(lm, MaskedLM) and isinstance(wanted, MaskedLM)
    recipe = ScheduleRecipe(model=str(tmp_path / "model"), data="builtin:sudoku4", price=0.4, updates=4)

    def killed(line: str) -> None:
        if line.startswith("update 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept = Kept(folder, recipe, digest_of(lm))
        learn_schedule(lm, recipe.data, recipe.price, updates=4, tell=killed, kept=kept)
    assert Kept.found(folder) == kept and not out.exists()
    for wrong, said in (
        ([*command, "--out", str(out)], "half learned; add --resume"),
        (["schedule", "--resume", "--price", "0.1", "--out", str(out)], "leave --price out"),
        (["schedule", "--resume", "--out", str(tmp_path / "other")], "nothing to resume"),
    ):
        capsys.readouterr()
        assert main(wrong) != 0 and said in capsys.readouterr().err
    assert main(["schedule", "--resume", "--out", str(out)]) == 0
    assert "going on after update 2 of 4" in capsys.readouterr().err and not folder.exists()
    taught = load(out, device="cpu")
    assert isinstance(taught, MaskedLM) and taught.decoder == wanted.decoder
    assert card_of(out) == card_of(tmp_path / "at once")


def test_a_schedule_is_not_gone_on_with_for_another_model(tmp_path, capsys):
    save_model(tmp_path / "model", puzzler(), recipe={}, card="# A model\n")
    recipe = ScheduleRecipe(model=str(tmp_path / "model"), data="builtin:sudoku4")
    generator, schedule = torch.Generator(), Schedule()
    optimizer = torch.optim.Adam(schedule.parameters())
    kept = Kept(tmp_path / "new.learning", recipe, "another")
    scheduling._keep(kept, 1, schedule, optimizer, generator)
    assert main(["schedule", "--resume", "--out", str(tmp_path / "new")]) != 0
    assert "has changed since its schedule was begun" in capsys.readouterr().err
    save_checkpoint(tmp_path / "run", 1, {}, {})
    with pytest.raises(CheckpointError, match="not that of a schedule"):
        Kept.found(tmp_path / "run")


def test_what_it_is_not_for_is_refused(tmp_path):
    for lm in (puzzler(elastic=True), puzzler(classes=5), puzzler(thinking=ThinkingConfig(slots=2))):
        with pytest.raises(UsageError, match="neither think nor doubt, without classes"):
            learn_schedule(lm, "builtin:sudoku4", 0.1)
    for price, updates in ((-0.1, 1), (1.0, 1), (float("nan"), 1), (0.1, 0)):
        with pytest.raises(ConfigError):
            learn_schedule(puzzler(), "builtin:sudoku4", price, updates=updates)
    (tmp_path / "plain.txt").write_text("some words\n" * 20)
    with pytest.raises(DataError, match="no prompts"):
        learn_schedule(puzzler(), str(tmp_path / "plain.txt"), 0.1)
