"""Captions and images in one state, by hand: hand-made nets, a slow reference of the flow, a loss told once more."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from manta.errors import ConfigError, UsageError
from manta.families.joint_flow import JointFlow, JointRequest, _barred, joint_matching, joint_shaped
from manta.families.joint_model import (
    Joint,
    JointConfig,
    JointMatching,
    JointModel,
    JointObjectiveConfig,
    _mean_where,
)
from manta.flow.time_density import TimeDensityConfig
from manta.image import from_pixels, to_pixels
from manta.image.captioned import NOTHING, UNKNOWN, CaptionedBatch, CaptionedCodec
from manta.runtime import make_generator

CODEC = CaptionedCodec(height=8, width=12, channels=3, places=5, words=(",", "a", "blue", "circle", "red", "square"))
SHAPE: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "patch": 4, "word_channels": 6}


class Scripted(JointModel):
    """Tells fixed logits, and the velocity that leads from any state straight to a fixed image; notes what it sees."""

    logits: Tensor
    target: Tensor
    seen: list[tuple[Joint, Joint]]

    def forward(self, state: Joint, times: Joint) -> tuple[Tensor, Tensor]:
        self.seen.append((state, times))
        left = (1 - times.patches)[..., None].clamp_min(1e-3)
        return self.logits.expand(len(state.words), -1, -1), (self.target - state.patches) / left


def scripted(**changes: Any) -> JointFlow:
    torch.manual_seed(0)
    net = Scripted(joint_shaped(JointConfig(**{**SHAPE, **changes}), CODEC))
    net.logits = 2 * torch.randn(1, 5, 8)
    net.target = torch.rand(1, net.rows * net.columns, net.values) * 2 - 1
    net.seen = []
    return JointFlow(net, CODEC)


def seen_by(flow: JointFlow) -> list[tuple[Joint, Joint]]:
    net = flow.model
    assert isinstance(net, Scripted)
    return net.seen


IMAGE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
HIDDEN = np.zeros((8, 12), bool)
HIDDEN[0, 0] = HIDDEN[4:, 8:] = True
REQUESTS = [
    JointRequest(seed=3),
    JointRequest(caption="a red circle", seed=4),
    JointRequest(image=IMAGE, seed=5),
    JointRequest(caption="a ___ circle", image=IMAGE, hidden=HIDDEN, seed=6),
    JointRequest(caption="a red ___", seed=7),
]
GIVEN_WORDS = [None, [3, 6, 5, 0, 0], None, [3, None, 5, 0, 0], [3, 6, None, None, None]]
GIVEN_PATCHES = [[], [], range(6), [1, 2, 3, 4], []]


@torch.no_grad()
def reference(flow: JointFlow, row: int, num_steps: int) -> tuple[list[list[Tensor]], list[int], Tensor]:
    """The flow of one request, piece by piece: states before each call, and words and patches at the end."""
    net: Any = flow.model
    generator = make_generator(REQUESTS[row].seed)
    words, patches = torch.randn(5, 6, generator=generator), torch.randn(6, 48, generator=generator)
    vectors = F.normalize(net.words.vectors, dim=-1) * 6**0.5
    image = net.patches_of(from_pixels(torch.from_numpy(IMAGE))[None])[0]
    given: list[Any] = GIVEN_WORDS[row] or [None] * 5
    for place, word in enumerate(given):
        if word is not None:
            words[place] = vectors[word]
    for patch in GIVEN_PATCHES[row]:
        patches[patch] = image[patch]
    states, found = [], []
    last = max((place for place, word in enumerate(given) if word is not None), default=-1)
    for step in range(num_steps):
        states.append([words.clone(), patches.clone()])
        now, then = step / num_steps, (step + 1) / num_steps
        found = []
        for place, word in enumerate(given):
            logits = net.logits[0, place].clone()
            logits[UNKNOWN] = -torch.inf
            if place <= last:
                logits[NOTHING] = -torch.inf
            found.append(int(logits.argmax()) if word is None else word)
            if word is None:
                expected = (logits.softmax(0)[:, None] * vectors).sum(0)
                words[place] += (then - now) / (1 - now) * (expected - words[place])
        for patch in set(range(6)) - set(GIVEN_PATCHES[row]):
            patches[patch] += (then - now) * (net.target[0, patch] - patches[patch]) / (1 - now)
    return states, found, patches


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_each_row_follows_its_own_flow_and_what_is_given_stays(batch_size):
    flow = scripted()
    made = list(flow.generate(REQUESTS, num_steps=3, batch_size=batch_size))
    seen = seen_by(flow)
    assert [each.index for each in made] == [0, 1, 2, 3, 4] and {each.nfe for each in made} == {3}
    assert len(seen) == 3 * -(-5 // batch_size)
    for row, each in enumerate(made):
        states, words, patches = reference(flow, row, 3)
        for step in range(3):
            state, times = seen[row // batch_size * 3 + step]
            place = row % batch_size
            torch.testing.assert_close(state.words[place], states[step][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(state.patches[place], states[step][1], rtol=1e-4, atol=1e-5)
            given = GIVEN_WORDS[row] or [None] * 5
            told = [step / 3 if word is None else 1.0 for word in given]
            assert times.words[place].tolist() == pytest.approx(told)
            shown = [1.0 if patch in GIVEN_PATCHES[row] else step / 3 for patch in range(6)]
            assert times.patches[place].tolist() == pytest.approx(shown)
        assert each.caption == CODEC.caption(words)
        expected = to_pixels(flow.model.image_of(patches[None]), CODEC.shape)[0]
        assert np.abs(each.pixels.astype(int) - expected).max() <= 1
    assert np.array_equal(made[2].pixels, IMAGE)


def test_a_patch_of_any_size_is_hidden_as_a_whole():
    flow = scripted(patch=5)  # two by three patches, the last ones beyond the edges
    hidden = np.zeros((8, 12), bool)
    hidden[7, 11] = True
    [made] = flow.generate([JointRequest(image=IMAGE, hidden=hidden)], num_steps=1)
    assert np.array_equal(made.pixels[:5], IMAGE[:5]) and np.array_equal(made.pixels[:, :10], IMAGE[:, :10])
    assert not np.array_equal(made.pixels[5:, 10:], IMAGE[5:, 10:])


def test_nothing_comes_before_a_word_that_is_given_and_the_unknown_word_nowhere():
    barred = _barred(torch.tensor([[False, True, False, False], [False] * 4]), 5)
    assert barred[..., UNKNOWN].all() and not barred[..., 2:].any()
    assert barred[..., NOTHING].tolist() == [[True, True, False, False], [False] * 4]


def test_what_is_asked_in_short_is_what_is_asked_at_length():
    flow = scripted()
    drawn = flow.draw("a red circle", num_samples=2, seed=5, num_steps=2)
    long = flow.generate([JointRequest(caption="a red circle", seed=seed) for seed in (5, 6)], num_steps=2)
    assert np.array_equal(drawn, np.stack([made.pixels for made in long]))
    seen = seen_by(flow)
    seen.clear()
    assert flow.draw("a red circle").shape == (1, 8, 12, 3) and len(seen) == 16
    torch.testing.assert_close(seen[0][0].patches[0], reference_noise(0))
    seen.clear()
    assert len(flow.describe(IMAGE[None].repeat(2, 0))) == 2 and len(seen) == 4
    seen.clear()
    flow.describe(IMAGE[None].repeat(2, 0), seed=8, num_steps=1)
    begun = seen[0][0].words
    for row, seed in enumerate((8, 9)):
        torch.testing.assert_close(begun[row], torch.randn(5, 6, generator=make_generator(seed)))
    seen.clear()
    assert [made.nfe for made in flow.generate([JointRequest()])] == [16] and len(seen) == 16


def reference_noise(seed: int) -> Tensor:
    generator = make_generator(seed)
    torch.randn(5, 6, generator=generator)
    return torch.randn(6, 48, generator=generator)


def test_what_cannot_be_made_is_refused():
    flow = scripted()
    wrong: tuple[dict[str, Any], ...] = (
        {"caption": "a purple circle"},
        {"image": IMAGE[:4]},
        {"hidden": HIDDEN},
        {"seed": -1},
    )
    for given in wrong:
        with pytest.raises(UsageError):
            list(flow.generate([JointRequest(**given)], num_steps=1))
    request = JointRequest()
    hiding = (("hidden", HIDDEN * 1), ("hidden", HIDDEN[:4]))
    for name, value in (("caption", 3), ("image", IMAGE.tolist()), ("image", IMAGE / 255), *hiding):
        broken = JointRequest(image=IMAGE)
        object.__setattr__(broken, name, value)  # as from a caller whose types nobody checks
        with pytest.raises(UsageError):
            list(flow.generate([broken], num_steps=1))
    for settings in ({"num_steps": 0}, {"num_steps": 10**9}, {"num_steps": 1, "batch_size": 0}):
        with pytest.raises(UsageError, match="num_steps"):
            list(flow.generate([request], **settings))
    with pytest.raises(UsageError, match="num_samples"):
        flow.draw(num_samples=0)


def test_a_shape_fits_captions_and_images_or_is_refused():
    fits = joint_shaped(JointConfig(**SHAPE), CODEC)
    assert (fits.vocab_size, fits.places, fits.height, fits.width, fits.channels) == (8, 5, 8, 12, 3)
    JointFlow.check_codec(fits, CODEC)
    for name, value in {"vocab_size": 9, "places": 6, "height": 12, "width": 8, "channels": 1}.items():
        with pytest.raises(ConfigError):
            JointFlow.check_codec(replace(fits, **{name: value}), CODEC)
    for name in ("vocab_size", "places", "height", "width", "channels"):
        wrong: dict[str, Any] = {name: -1}
        with pytest.raises(ConfigError):
            JointConfig(**wrong)
    for wrong in ({"drawing": -0.1}, {"describing": -0.1}, {"completing": -0.1}, {"words": 0.0}, {"drawing": 0.7}):
        with pytest.raises(ConfigError):
            JointObjectiveConfig(**wrong)
    assert JointObjectiveConfig(drawing=0.5, describing=0.25, completing=0.25, words=0.1).drawing == 0.5


@torch.no_grad()
def test_the_trunk_reads_each_word_and_patch_with_its_kind_its_place_and_its_time():
    torch.manual_seed(1)
    net = JointModel(joint_shaped(JointConfig(**SHAPE), CODEC))
    assert net.kinds.shape == (2, 16) and net.places is not None and net.places.shape == (11, 16)
    for spread in (net.table.weight, net.kinds, net.places):
        assert 0.05 < float(spread.std()) < 0.2 and abs(float(spread.mean())) < 0.1
    state = Joint(torch.randn(2, 5, 6), torch.randn(2, 6, 48))
    times = Joint(torch.rand(2, 5), torch.rand(2, 6))
    read: dict[str, Any] = {}

    def note(module: Any, args: Any, kwargs: Any) -> None:
        read.update(x=args[0], contexts=args[1], modulation=kwargs["modulation"])

    hook = net.trunk.register_forward_pre_hook(note, with_kwargs=True)
    _, velocity = net(state, times)
    hook.remove()
    assert not velocity.any(), "a net that has learned nothing stays where it is"
    for place in range(11):
        word = place < 5
        entered = net.enter_words(state.words[:, place]) if word else net.enter_patches(state.patches[:, place - 5])
        expected = entered + net.kinds[0 if word else 1] + net.places[place]
        torch.testing.assert_close(read["x"][:, place], expected)
        own = times.words[:, place] if word else times.patches[:, place - 5]
        torch.testing.assert_close(read["modulation"][:, place], net.modulation(net.time(own))[:, 0])
    assert torch.equal(read["contexts"][0].time, torch.cat([times.words, times.patches], 1))
    known = net.words.clean(torch.tensor([[3, 4, 5, 6, 7]] * 2))
    told, _ = net(Joint(known, state.patches), Joint(torch.full((2, 5), 0.99), times.patches))
    assert told.argmax(-1).tolist() == [[3, 4, 5, 6, 7]] * 2, "a word at its end is told as it is"
    bare = JointModel(joint_shaped(JointConfig(**SHAPE, absolute_places=False), CODEC))
    assert bare.places is None and bare(state, times)[0].shape == (2, 5, 8)


def taught(shares: dict[str, float], count: int, seed: int) -> tuple[Any, CaptionedBatch, Scripted]:
    net, generator = JointModel(joint_shaped(JointConfig(**SHAPE), CODEC)), np.random.default_rng(0)
    pixels = torch.from_numpy(generator.integers(0, 256, (count, 8, 12, 3), np.uint8))
    batch = CaptionedBatch(pixels=pixels, words=torch.from_numpy(generator.integers(0, 8, (count, 5))))
    net.__class__ = Scripted
    assert isinstance(net, Scripted)
    torch.manual_seed(2)
    net.logits, net.target, net.seen = torch.randn(1, 5, 8), torch.randn(1, 6, 48), []
    density = TimeDensityConfig(kind="uniform").build()
    return (
        JointMatching(JointObjectiveConfig(**shares, words=0.7), density)(net, batch, make_generator(seed)),
        batch,
        net,
    )


def test_the_loss_by_hand(no_global_draws):
    """Each row is a state between noise and itself, at times of its own; what is given is itself, at its end."""
    loss, batch, net = taught({"drawing": 0.3, "describing": 0.3, "completing": 0.3}, 600, 3)
    with no_global_draws():
        JointMatching(JointObjectiveConfig(), TimeDensityConfig(kind="uniform").build())(net, batch, make_generator(1))
    state, times = net.seen[0]
    clean = Joint(net.words.clean(batch.words), net.patches_of(from_pixels(batch.pixels)))
    given = Joint(*(t == 1 for t in times))
    for own, known, told in zip(state, clean, given, strict=True):
        torch.testing.assert_close(own[told], known[told])
    for t, most in zip(times, (0.999, 1.0), strict=True):
        free = t[t < 1]
        assert 0 <= free.min() < 0.02 and most - 0.02 < free.max() <= most and abs(free.mean() - 0.5) < 0.05
    same = [len(set(t[row][t[row] < 1].tolist())) <= 1 for t in times for row in range(600)]
    assert all(same), "what is free of a row's words, or patches, has one time"
    assert len({round(float(t[t < 1].min()), 5) for t in (*times.words, *times.patches) if (t < 1).any()}) > 300
    table = -net.logits[0].log_softmax(-1)
    nats = [table[place, batch.words[row, place]] for row, place in (~given.words).nonzero().tolist()]
    torch.testing.assert_close(loss.parts["nats"], torch.stack(nats).mean().detach(), rtol=1e-4, atol=1e-5)
    free = (times.patches < 0.98) & ~given.patches
    noise = ((state.patches - times.patches[..., None] * clean.patches) / (1 - times.patches[..., None]))[free]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    words = times.words < 0.98
    noise = ((state.words - times.words[..., None] * clean.words) / (1 - times.words[..., None]))[words]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    torch.testing.assert_close(loss.total, 0.7 * loss.parts["nats"] + loss.parts["velocity"], check_dtype=False)
    assert loss.count == 600 and not loss.parts["nats"].requires_grad


def test_the_error_of_the_velocity_by_hand():
    net = JointModel(joint_shaped(JointConfig(**SHAPE), CODEC))

    class Still(Scripted):
        def forward(self, state: Joint, times: Joint) -> tuple[Tensor, Tensor]:
            self.seen.append((state, times))
            return self.logits.expand(len(state.words), -1, -1), torch.full_like(state.patches, 0.5)

    batch = CaptionedBatch(pixels=torch.from_numpy(IMAGE[None].repeat(4, 0)), words=torch.tensor([[3, 6, 5, 0, 0]] * 4))
    net.__class__ = Still
    assert isinstance(net, Still)
    net.logits, net.seen = torch.zeros(1, 5, 8), []
    shares = {"drawing": 0.0, "describing": 0.0, "completing": 1.0}
    density = TimeDensityConfig(kind="uniform").build()
    loss = JointMatching(JointObjectiveConfig(**shares), density)(net, batch, make_generator(2))
    state, times = net.seen[0]
    clean, errors = net.patches_of(from_pixels(batch.pixels)), []
    for row, patch in (times.patches < 1).nonzero().tolist():
        t = times.patches[row, patch]
        noise = (state.patches[row, patch] - t * clean[row, patch]) / (1 - t)
        errors.append((0.5 - clean[row, patch] + noise).square().mean())
    assert 0 < len(errors) < 24
    torch.testing.assert_close(loss.parts["velocity"], torch.stack(errors).mean(), rtol=1e-3, atol=1e-4)
    assert loss.parts["nats"] == pytest.approx(np.log(8))


def test_parts_are_given_as_often_as_their_shares_say_and_apart_from_each_other():
    matching = joint_matching(
        JointConfig(), JointObjectiveConfig(drawing=0.2, describing=0.3, completing=0.4), measured := {}
    )
    assert measured["density"] is matching.density
    count = 6000
    words, patches = torch.zeros(count, 30, dtype=torch.long), torch.zeros(count, 40, 2)
    given = matching._given(words, patches, make_generator(0))
    drawn, described = given.words.all(1), given.patches.all(1)
    of_words, of_patches = given.words.float().mean(1), given.patches.float().mean(1)
    some = ~drawn & ~described & ((of_words > 0) | (of_patches > 0))
    assert drawn[of_patches == 0].float().sum() / count == pytest.approx(0.2, abs=0.02)
    assert described[of_words == 0].float().sum() / count == pytest.approx(0.3, abs=0.02)
    assert some.float().mean() == pytest.approx(0.4, abs=0.04)
    for share in (of_words[some], of_patches[some]):
        assert share.mean() == pytest.approx(0.5, abs=0.04) and share.std() == pytest.approx(12**-0.5, abs=0.03)
    both = torch.corrcoef(torch.stack([of_words[some], of_patches[some]]))
    assert abs(both[0, 1]) < 0.1


def test_a_mean_over_nothing_is_nothing():
    values = torch.tensor([[2.0, 4.0], [6.0, 7.0]])
    assert _mean_where(values, torch.tensor([[True, False], [False, False]])) == 2
    assert _mean_where(values, torch.tensor([[True, True], [True, False]])) == 4
    assert _mean_where(values, torch.zeros(2, 2, dtype=torch.bool)) == 0
