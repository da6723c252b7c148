from typing import Any

import numpy as np
import pytest
import torch

from manta.errors import ConfigError, UsageError
from manta.families.image_flow import DrawOptions, DrawRequest, ImageFlow
from manta.families.image_model import CodeEncoder, ImageConfig, ImageModel
from manta.families.image_objective import ImageMatching, ImageObjectiveConfig
from manta.flow import LinearPath, TimeDensityConfig
from manta.image import ImageBatch, ImageCodec, ImageCorpus, build_images, from_pixels
from manta.image.shapes import CLASSES, examples
from manta.nets.grid import DicConfig, DitConfig, UditConfig

NETS = {
    "dic": DicConfig(width=8, depths=(1, 1, 1, 1, 1)),
    "udit": UditConfig(width=8, depths=(1, 1, 1, 1, 1), heads=2),
    "dit": DitConfig(width=16, depth=1, heads=2),
}
CODEC = ImageCodec(height=24, width=24, channels=3, classes=CLASSES)


def model(kind="dic", bits=0, **more):
    torch.manual_seed(0)
    config = ImageConfig(height=24, width=24, channels=3, classes=11, net=NETS[kind], bits=bits, **more)
    found = ImageModel(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return found


def flow(kind="dic", bits=0):
    codes = torch.arange(1.0, 1 + 11 * (1 << bits)).view(11, -1) if bits else None
    return ImageFlow(model(kind, bits), CODEC, codes)


def batch(number=8):
    drawn = list(examples("train", number))
    return ImageBatch(
        pixels=torch.from_numpy(np.stack([example.pixels for example in drawn])),
        label=torch.tensor([CLASSES.index(example.label) for example in drawn]),
        index=torch.arange(number),
    )


@pytest.mark.parametrize("prediction", ["velocity", "clean"])
def test_the_estimate_is_the_clean_state_whatever_the_net_says(prediction):
    net = model(prediction=prediction)
    state, t = torch.randn(2, 576, 3), torch.tensor([0.25, 1.0])
    told = net.told(torch.tensor([3, -1]))
    said = net.net(state, t, told)
    estimate = net.act(state, t, cond=told).clean
    if prediction == "clean":
        torch.testing.assert_close(estimate, said)
    else:
        torch.testing.assert_close(LinearPath().convert(estimate[:1], "clean", "velocity", state[:1], t[:1]), said[:1])
        torch.testing.assert_close(estimate[1], state[1])


def test_the_loss_is_the_squared_error_of_the_velocity():
    """By hand: times and noise as `velocity_matching` draws them, without a class told."""
    net, images = model(), batch()
    config = ImageObjectiveConfig(class_dropout=1.0, weight_cap=1e9)
    density = TimeDensityConfig(kind="uniform").build()
    loss = ImageMatching(config, density)(net, images, torch.Generator().manual_seed(5))
    seen = {}

    class Watched(ImageModel):
        def act(self, state, t, *, cond, self_cond=None):
            seen.update(state=state, t=t, cond=cond)
            return super().act(state, t, cond=cond)

    net.__class__ = Watched
    again = ImageMatching(config, density)(net, images, torch.Generator().manual_seed(5))
    clean, (state, t) = from_pixels(images.pixels), (seen["state"], seen["t"])
    noise = (state - t[:, None, None] * clean) / (1 - t[:, None, None])
    expected = (net.net(state, t, seen["cond"]) - (clean - noise)).square().mean()
    torch.testing.assert_close(again.total, expected, rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(loss.total, again.total)
    assert (seen["cond"].label == 11).all()


def test_classes_are_left_out_as_often_as_asked():
    told = []

    class Asking(ImageModel):
        def told(self, label, code=None):
            told.append(label)
            return super().told(label, code)

    objective = ImageMatching(ImageObjectiveConfig(class_dropout=0.25), TimeDensityConfig(kind="uniform").build())
    images = batch(400)
    net = model()
    net.__class__ = Asking
    objective(net, images, torch.Generator().manual_seed(0))
    left_out = told[0] == -1
    assert 0.17 < left_out.float().mean() < 0.33
    assert torch.equal(told[0][~left_out], images.label[~left_out])


def test_a_code_is_signs_with_a_gradient_and_costs_a_hundredth():
    net: Any = model(bits=4)
    clean = from_pixels(batch().pixels)
    code = net.code(clean)
    assert code.shape == (8, 4) and set(code.detach().unique().tolist()) <= {-1.0, 1.0}
    code.square().mean().backward()
    weights = torch.linspace(-1, 1, 4)
    net.zero_grad()
    (net.code(clean) * weights).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.encoder.parameters())
    size = sum(p.numel() for p in net.net.parameters())
    assert sum(p.numel() for p in CodeEncoder(3, 4, 10_000).parameters()) <= 10_000
    assert sum(p.numel() for p in net.encoder.parameters()) <= max(size // 100, 200)


@pytest.mark.parametrize("kind", NETS)
def test_an_image_is_that_of_its_seed_and_class_in_any_batch(kind):
    lm = flow(kind)
    requests = [DrawRequest(label=i % 11, seed=100 + i) for i in range(7)]
    how = DrawOptions(num_steps=3)
    whole = {drawn.index: drawn for drawn in lm.generate(requests, how)}
    parts = {drawn.index: drawn for drawn in lm.generate(requests, how, batch_size=2)}
    for i in range(7):
        assert np.abs(whole[i].pixels.astype(int) - parts[i].pixels.astype(int)).max() <= 1
        assert whole[i].nfe == 3
    alone = lm.draw(3, seed=103, num_steps=3)[0]
    assert np.abs(whole[3].pixels.astype(int) - alone.astype(int)).max() <= 1
    assert not np.array_equal(whole[3].pixels, lm.draw(3, seed=104, num_steps=3)[0])
    assert not np.array_equal(whole[3].pixels, lm.draw(4, seed=103, num_steps=3)[0])


def test_euler_is_followed_as_its_formula_says():
    lm = flow()
    noise, told, _ = lm.begin([DrawRequest(label=2, seed=7)])
    state = noise
    for i in range(4):
        t = torch.tensor([i / 4])
        clean = lm.model.act(state, t, cond=told).clean
        state = state + 0.25 * (clean - state) / (1 - t)
    expected = ((state.detach().clamp(-1, 1) + 1) * 127.5).round().view(24, 24, 3).numpy()
    assert np.abs(lm.draw(2, seed=7, num_steps=4)[0].astype(float) - expected).max() <= 1


def test_calls_never_exceed_the_budget_and_guidance_counts_double():
    lm = flow()
    calls = []
    act = lm.model.act
    lm.model.act = lambda *a, **k: calls.append(1) or act(*a, **k)
    budgets: tuple[tuple[dict[str, Any], int], ...] = (
        ({"num_steps": 8}, 8),
        ({"num_steps": 8, "solver": "heun"}, 8),
        ({"num_steps": 8, "guidance_scale": 2.0}, 8),
        ({"num_steps": 5, "guidance_scale": 2.0}, 4),
        ({"num_steps": 6, "solver": "renoise"}, 6),
    )
    for given, most in budgets:
        calls.clear()
        [drawn] = lm.generate([DrawRequest(label=0, seed=0)], DrawOptions(**given))
        assert len(calls) == drawn.nfe <= most, given


def test_guidance_goes_on_from_the_estimate_without_a_class():
    lm = flow()
    noise, told, _ = lm.begin([DrawRequest(label=5, seed=3)])
    t = torch.zeros(1)
    null = lm.model.act(noise, t, cond=lm.model.told(torch.tensor([-1]))).clean
    own = lm.model.act(noise, t, cond=told).clean
    expected = null + 3 * (own - null)  # one step from t = 0 lands on the estimate
    image = lm.draw(5, seed=3, num_steps=2, guidance_scale=3.0)[0]
    pixels = ((expected.detach().clamp(-1, 1) + 1) * 127.5).round().view(24, 24, 3).numpy()
    assert np.abs(image.astype(float) - pixels).max() <= 1


def test_a_change_begins_at_the_image_and_keeps_more_the_weaker_it_is():
    lm = flow()
    image = next(examples("dev", 1)).pixels
    moved = [np.abs(lm.draw(seed=1, edit=image, strength=s)[0].astype(float) - image).mean() for s in (0.02, 0.3, 1.0)]
    assert moved[0] < moved[1] < moved[2] and moved[0] < 10
    assert np.array_equal(lm.draw(seed=1, edit=image, strength=1.0), lm.draw(seed=1))


@pytest.mark.parametrize(
    "given, words",
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 10**9}, "num_steps"),
        ({"solver": "rk4"}, "solver"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": 2.0, "num_steps": 1}, "two calls"),
        ({"strength": 0.0}, "strength"),
        ({"strngth": 0.5}, "unknown option"),
        ({"label": "hexagon"}, "no class"),
        ({"num_samples": 0}, "num_samples"),
        ({"seed": -1}, "seed"),
        ({"edit": np.zeros((3, 3, 3), np.uint8)}, "image to change"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_steps": 2.5}, "num_steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, words):
    with pytest.raises(UsageError, match=words):
        flow().draw(**given)


def test_codes_are_counted_by_class_and_drawn_as_often(tmp_path):
    lm: Any = flow(bits=2)
    build_images(examples("train", 300), tmp_path / "c", size=None, channels=3, source="")
    corpus = ImageCorpus(tmp_path / "c")
    lm.learn_codes(corpus)
    code = lm.model.code(from_pixels(torch.from_numpy(corpus.pixels(np.arange(len(corpus))))))
    numbers = ((code > 0).long() * torch.tensor([1, 2])).sum(1).numpy()
    expected = np.zeros((11, 4))
    np.add.at(expected, (corpus.labels, numbers), 1)
    assert np.array_equal(lm.codes.numpy(), expected)
    lm.codes = torch.tensor([[1.0, 0, 0, 3.0]]).repeat(11, 1)
    requests = [DrawRequest(label=None if i % 2 else 4, seed=i) for i in range(400)]
    _, told, _ = lm.begin(requests)
    ones = (told.code == 1).all(1)
    assert 0.68 < ones.float().mean() < 0.82 and (ones | (told.code == -1).all(1)).all()


def test_an_image_that_is_changed_says_its_own_code():
    lm = flow(bits=2)
    lm.codes = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(11, 1)
    image = next(examples("dev", 1)).pixels
    own = lm.model.code(from_pixels(torch.from_numpy(image))[None])
    _, told, _ = lm.begin([DrawRequest(label=1, begin=image), DrawRequest(label=1)])
    assert own is not None and told.code is not None
    assert torch.equal(told.code[0], own[0]) and told.code[1].tolist() == [-1.0, -1.0]


def test_a_code_changes_what_is_drawn():
    lm = flow(bits=1)
    lm.codes = torch.tensor([[1.0, 0.0]]).repeat(11, 1)
    before = lm.draw(1, seed=0)
    lm.codes = torch.tensor([[0.0, 1.0]]).repeat(11, 1)
    assert not np.array_equal(before, lm.draw(1, seed=0))


@pytest.mark.parametrize("codes", [None, torch.ones(3, 4), torch.ones(11, 3), -torch.ones(11, 4), torch.zeros(1, 4)])
def test_frequencies_of_codes_that_are_missing_or_damaged_are_refused(codes):
    parts = {} if codes is None else {"codes": codes}
    with pytest.raises(ConfigError, match="codes"):
        ImageFlow.stored(model(bits=2), CODEC, {}, parts)


def test_a_shape_and_images_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="classes"):
        ImageFlow.check_codec(ImageConfig(height=24, width=24, channels=3, classes=2), CODEC)
    wrong: tuple[dict[str, Any], ...] = ({"bits": 17}, {"bits": -1}, {"height": -1})
    for given in wrong:
        with pytest.raises(ConfigError):
            ImageConfig(**given)


def test_codes_that_one_class_lacks_are_refused():
    codes = torch.ones(11, 4)
    codes[3] = 0
    with pytest.raises(ConfigError, match="codes"):
        ImageFlow.stored(model(bits=2), CODEC, {}, {"codes": codes})
    assert ImageFlow.stored(model(bits=2), CODEC, {}, {"codes": torch.ones(11, 4)}).codes is not None


def test_guidance_below_one_and_seeds_out_of_range():
    assert DrawOptions(guidance_scale=0.0).guidance_scale == 0
    for seed in (-1, 2**64):
        with pytest.raises(UsageError, match="seed"):
            list(flow().generate([DrawRequest(seed=seed)], DrawOptions(num_steps=1)))


@pytest.mark.parametrize(("channels", "bits", "most"), [(3, 4, 5000), (1, 8, 2000), (6, 2, 900)])
def test_an_encoder_of_codes_is_as_wide_as_its_parameters_allow(channels, bits, most):
    made = CodeEncoder(channels, bits, most)
    width = made.out.in_features
    assert sum(p.numel() for p in made.parameters()) == CodeEncoder._size(channels, width, bits) <= most
    assert CodeEncoder._size(channels, width + 1, bits) > most
    assert CodeEncoder(3, 4, 0).out.in_features == 2


def test_an_encoder_of_codes_may_take_all_that_it_is_allowed():
    whole = CodeEncoder._size(3, 10, 4)
    assert [CodeEncoder(3, 4, most).out.in_features for most in (whole - 1, whole, whole + 1)] == [9, 10, 10]
