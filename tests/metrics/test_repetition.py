"""What a Manta-LM feeds back is heard as it is, text by text, and moved by the escape."""

import pytest
import torch

from manta.errors import DataError, UsageError
from manta.families.events import GenerateOptions, Request
from manta.families.manta_lm import MantaLM
from manta.metrics.repetition import feedback_of, learn_repetition

from ..families.conftest import make_lm

PROMPTS = ["the cat", None, "rain fell over hills", "the cat", "old river", "a mat"]
OPTIONS = GenerateOptions(num_steps=6)


@pytest.fixture(scope="module", params=["latent", "embedding"])
def lm(request) -> MantaLM:
    return make_lm(request.param)


def heard(lm: MantaLM, **options) -> list[torch.Tensor | None]:
    """What each call is told of the last estimate."""
    found: list[torch.Tensor | None] = []
    ear = lm.model.field.register_forward_pre_hook(
        lambda module, given, named: found.append(named["self_cond"]), with_kwargs=True
    )
    list(lm.generate([Request(prompt="the cat")], GenerateOptions(num_steps=6, **options)))
    ear.remove()
    return found


def test_feedback_of_a_text_does_not_depend_on_its_batch(lm):
    together, texts = feedback_of(lm, PROMPTS, OPTIONS, seed=5)
    alone, others = feedback_of(lm, PROMPTS, GenerateOptions(num_steps=6), seed=5, batch_size=1)
    assert texts == others == lm.write(PROMPTS, seed=5, num_steps=6)
    assert together.shape == (len(PROMPTS), lm.model.space.channels)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_feedback_is_the_mean_over_positions_and_calls(lm):
    fed: list[torch.Tensor] = []

    def hear(module, given, named) -> None:
        if named["self_cond"] is not None:  # rows are padded: only the canvas counts
            canvas = named["cond"].mask[0, :: lm.model.space.rate]
            fed.append(named["self_cond"][:, canvas].mean(1))

    ear = lm.model.field.register_forward_pre_hook(hear, with_kwargs=True)
    list(lm.generate([Request(prompt="the cat")], OPTIONS))
    ear.remove()
    assert len(fed) > 1
    feedback, _ = feedback_of(lm, ["the cat"], OPTIONS)
    torch.testing.assert_close(feedback, torch.stack(fed).mean(0))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_the_escape_moves_what_is_fed_back(guidance_scale):
    lm = make_lm("latent")
    direction = torch.nn.functional.normalize(torch.randn(lm.model.space.channels), dim=0)
    lm.repetition = direction
    plain, off = heard(lm, guidance_scale=guidance_scale), heard(lm, guidance_scale=guidance_scale, escape_scale=0.0)
    assert len(plain) == len(off)
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(plain, off, strict=True))  # pyright: ignore
    moved = heard(lm, guidance_scale=guidance_scale, escape_scale=0.7)
    first = next(i for i, estimate in enumerate(plain) if estimate is not None)
    assert all(estimate is None for estimate in moved[:first])
    torch.testing.assert_close(moved[first], plain[first] - 0.7 * direction)  # pyright: ignore


def test_the_direction_is_learned_and_needed():
    lm = make_lm("latent")
    with pytest.raises(UsageError, match="learn_repetition"):
        lm.write(["the cat"], escape_scale=1.0)
    direction, gap = learn_repetition(lm, ["the cat"] * 30, OPTIONS, n=1, tokenize=list)
    assert direction.norm().item() == pytest.approx(1) and gap > 0
    lm.repetition = direction
    assert lm.write(["the cat"], num_steps=6, escape_scale=3.0)


def test_a_loop_without_feedback_or_repetition_has_no_direction():
    lm = make_lm("latent")
    with pytest.raises(UsageError, match="num_steps"):
        learn_repetition(lm, PROMPTS, GenerateOptions(num_steps=1))
    with pytest.raises(DataError, match="do not differ"):
        learn_repetition(lm, PROMPTS, OPTIONS, n=50)
