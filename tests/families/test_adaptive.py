"""Adaptive conditions of texts: a code that is learned, expected by the prompt, and told to every call."""

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from manta.errors import ConfigError
from manta.families.codes import expected_codes
from manta.families.events import GenerateOptions, Request, finished
from manta.families.model import MantaConfig, MantaModel
from manta.families.objectives import EmbeddingMatching, ObjectiveConfig, PolicyMatching, code_cost
from manta.families.prompted import Memory
from manta.flow import TimeDensityConfig
from manta.flow.adaptive import code_numbers
from manta.runtime import make_generator
from manta.spaces import RateController

from .conftest import make_lm
from .test_objectives import make_batch


@pytest.mark.parametrize("kind", ["latent", "embedding"])
def test_the_code_learns_through_what_the_policy_makes_of_it(kind):
    lm = make_lm(kind, bits=3)
    net, density = lm.model.train(), TimeDensityConfig().build()
    config = ObjectiveConfig(code_dropout=0.0)
    matching = PolicyMatching(config, density, RateController(20.0))
    objective = matching if kind == "latent" else EmbeddingMatching(config, density)
    loss = objective(net, make_batch([9, 6, 12, 4], vocab=200), make_generator(0))
    loss.total.backward()
    assert loss.parts["code"] > 0
    for part in (net.code_reader.near.weight, net.code_reader.out.weight, net.code_prior.weight, net.field.code):
        assert part.grad is not None and part.grad.abs().sum() > 0


def test_the_prior_is_taught_the_codes_of_texts_and_moves_nothing_else():
    lm = make_lm(bits=3)
    net, batch = lm.model, make_batch([9, 6, 12, 4], vocab=200)
    memory = net.memory(batch.prompt, batch.prompt_lengths, batch.tag)
    clean, mask = torch.randn(4, 3, 6, requires_grad=True), torch.ones(4, 3, dtype=torch.bool)
    code, nats = code_cost(net, clean, mask, memory, ObjectiveConfig(code_dropout=0.0), make_generator(0))
    chances = net.code_logits(memory).log_softmax(-1)
    assert code is not None and nats is not None
    assert float(nats.detach()) == pytest.approx(
        -float(chances[torch.arange(4), code_numbers(code)].mean().detach()), abs=1e-5
    )
    nats.backward()
    assert clean.grad is None and net.code_reader.out.weight.grad is None
    assert net.code_prior.weight.grad.abs().sum() > 0
    dropped, _ = code_cost(net, clean, mask, memory, ObjectiveConfig(code_dropout=1.0), make_generator(0))
    assert dropped is not None and not dropped.any() and set(code.detach().flatten().tolist()) <= {-1.0, 1.0}


def test_padding_says_nothing_to_the_code():
    net = make_lm(bits=4).model
    clean = torch.randn(5, 4, 6)
    mask = torch.ones(5, 4, dtype=torch.bool)
    wider = torch.cat([clean, 100 * torch.randn(5, 3, 6)], 1)
    short, long = net.code(clean, mask), net.code(wider, torch.nn.functional.pad(mask, (0, 3)))
    assert short is not None and long is not None and torch.equal(short, long)


def test_the_code_is_drawn_as_the_prompt_lets_expect_and_told():
    lm = make_lm(bits=2)
    with torch.no_grad():
        lm.model.code_prior.weight.zero_()
        lm.model.code_prior.bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))
    beginning = lm.begin([Request(prompt="the cat", seed=i) for i in range(3)], GenerateOptions(num_steps=4))
    assert beginning.code is not None and torch.equal(beginning.code, torch.tensor([[-1.0, 1.0]] * 3))
    with torch.no_grad():
        lm.model.code_prior.bias.zero_()
    drawn = lm.begin([Request(prompt="the cat", seed=i) for i in range(64)], GenerateOptions(num_steps=4)).code
    assert drawn is not None and len(set(map(tuple, drawn.tolist()))) == 4
    found = set()
    for number in range(4):
        with torch.no_grad():
            lm.model.code_prior.bias.copy_(50.0 * torch.nn.functional.one_hot(torch.tensor(number), 4))
        options = GenerateOptions(num_steps=4, style="consensus")
        (event,) = finished(lm.generate([Request(prompt="the cat")], options))
        found.add(event.tokens)
    assert len(found) > 1, "another code is another text"


def test_beside_given_words_no_code_is_told():
    lm, found = make_lm(bits=2), set()
    for number in range(4):
        with torch.no_grad():
            lm.model.code_prior.weight.zero_()
            lm.model.code_prior.bias.copy_(50.0 * torch.nn.functional.one_hot(torch.tensor(number), 4))
        request = Request(prompt="the cat", infill="the cat ___{4} river")
        (event,) = finished(lm.generate([request], GenerateOptions(num_steps=4)))
        found.add((event.tokens, event.confidence))
    assert len(found) == 1


def test_without_bits_there_is_nothing_of_it():
    net = make_lm().model
    assert net.code_reader is None and net.code_prior is None and net.field.code is None
    assert net.code(torch.randn(1, 2, 6), torch.ones(1, 2, dtype=torch.bool)) is None
    assert not [name for name in net.state_dict() if name.startswith(("code", "field.code"))]
    with pytest.raises(ConfigError, match="bits"):
        replace(net.config, bits=9)
    shape = MantaConfig(vocab_size=300, dim=256, depth=4, bits=8)
    large = MantaModel(shape)
    policy = sum(p.numel() for p in large.field.parameters())
    assert large.code_reader is not None
    assert 0 < sum(p.numel() for p in large.code_reader.parameters()) <= 0.01 * policy


class Told:
    """Stands for a model: the chances of its codes are written down."""

    def __init__(self, chances: list[list[float]]) -> None:
        self.config, self.chances = SimpleNamespace(bits=2), torch.tensor(chances)

    def code_logits(self, memory: Memory) -> torch.Tensor:
        return self.chances.log()


def test_a_code_is_the_likeliest_of_four_or_drawn_and_none_beside_given_words():
    chances = [[0.1, 0.2, 0.6, 0.1], [0.0, 1.0, 0.0, 0.0], [0.3, 0.1, 0.2, 0.4]]
    memory = Memory(torch.zeros(3, 1, 4), torch.ones(3, 1).bool())
    templates: Any = [None, ((1, 5),), None]
    # Behind the checks of types, which ask for a model of Manta-LM.
    expected = inspect.unwrap(expected_codes)

    def codes(style: Any, seed: int = 0) -> list[list[float]]:
        generators = [make_generator(seed + row) for row in range(3)]
        model: Any = Told(chances)
        return expected(model, memory, templates, generators, GenerateOptions(style=style)).tolist()

    assert codes("consensus") == [[-1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    drawn = [codes("diverse", 10 * seed) for seed in range(300)]
    assert all(row[1] == [0.0, 0.0] for row in drawn)
    for row, table in ((0, chances[0]), (2, chances[2])):
        share = sum(each[row] == [-1.0, 1.0] for each in drawn) / 300
        assert share == pytest.approx(table[2], abs=0.1)
    assert expected_codes(make_lm().model, memory, [None] * 3, [], GenerateOptions()) is None


@pytest.mark.parametrize("frozen", ["none", "some", "all"])
def test_a_space_that_is_trained_in_part_is_trained(frozen):
    """Its rate is held and its latents are followed; of one that is given neither is, and nothing in it moves."""
    net = make_lm().model.train()
    parameters = list(net.space.parameters())
    for parameter in {"none": [], "some": parameters[:1], "all": parameters}[frozen]:
        parameter.requires_grad_(False)
    controller = RateController(20.0)
    matching = PolicyMatching(ObjectiveConfig(), TimeDensityConfig().build(), controller)
    before = net.space.mean.clone()  # pyright: ignore[reportCallIssue]
    loss = matching(net, make_batch([9, 6, 12, 4], vocab=200), make_generator(0))
    loss.total.backward()
    assert (controller.rate is None) == (frozen == "all")
    assert torch.equal(net.space.mean, before) == (frozen == "all")  # pyright: ignore[reportArgumentType]
    assert (parameters[-1].grad is None) == (frozen == "all")
