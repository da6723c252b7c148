"""Image flows at their limits and by hand: codes, classes, latents, changes of an image, what a shape may be."""

from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from manta.errors import ConfigError, ModelError, UsageError
from manta.families import image_flow
from manta.families.image_flow import DrawOptions, DrawRequest, ImageFlow, matching, reconstruction, shaped
from manta.families.image_imitation import FieldImitation
from manta.families.image_model import CodeEncoder, ImageConfig, ImageModel, without_class
from manta.families.image_objective import ImageMatching, ImageObjectiveConfig, Reconstruction
from manta.families.imitation import watched
from manta.flow import TimeDensityConfig
from manta.image import ImageBatch, ImageCodec, ImageCorpus, from_pixels, to_pixels
from manta.nets.grid import DicConfig, DitConfig
from manta.nets.grid.told import as_grid
from manta.runtime import make_generator
from manta.spaces import LatentGridConfig, RateController
from manta.types import Estimate

CODEC = ImageCodec(height=8, width=8, channels=3, classes=("a", "b", "c"))
NET = DicConfig(width=8, depths=(1, 1, 1, 1, 1))


def make(codec: ImageCodec = CODEC, **changes: Any) -> ImageFlow:
    torch.manual_seed(0)
    net = ImageModel(shaped(ImageConfig(**{"net": NET, **changes}), codec))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return ImageFlow(net, codec, torch.ones(1, 1 << net.config.bits) if net.config.bits else None)


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


class Pictures(ImageCorpus):
    """A corpus of numbered pictures; notes which are looked at."""

    def __init__(self, labels: list[int]) -> None:
        self.all, self.labels, self.seen = images(len(labels)), np.array(labels), []

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, rows: Any) -> Any:
        self.seen += rows.tolist()
        return self.all[rows]


def counted(flow: ImageFlow, labels: list[int], **how: Any) -> tuple[list[int], Tensor]:
    pictures = Pictures(labels)
    flow.learn_codes(pictures, **how)
    assert flow.codes is not None
    return pictures.seen, flow.codes


def numbers_of(flow: ImageFlow, count: int) -> list[int]:
    code = flow.model.code(from_pixels(torch.from_numpy(images(count))))
    assert code is not None
    return [sum(1 << bit for bit, sign in enumerate(row) if sign > 0) for row in code.tolist()]


def test_codes_are_counted_to_the_last_image_by_class_where_the_table_is_small(monkeypatch):
    flow = make(bits=2)
    labels = [0, 2] * 150
    rows, codes = counted(flow, labels)
    expected = torch.zeros(3, 4)
    for kind, number in zip(labels, numbers_of(flow, 300), strict=True):
        expected[kind, number] += 1
    expected[1] = 1.0  # a class without images has all codes alike
    assert rows == list(range(300)) and torch.equal(codes, expected)
    monkeypatch.setattr(image_flow, "MAX_CODES", 12)
    assert counted(flow, labels)[1].shape == (3, 4)
    monkeypatch.setattr(image_flow, "MAX_CODES", 11)
    assert torch.equal(counted(flow, labels)[1], expected[[0, 2]].sum(0, keepdim=True))
    rows, codes = counted(flow, labels, most=7)
    assert rows == [int(300 * i / 6 - i / 6) for i in range(7)] and codes.sum() == 7
    classless = make(ImageCodec(height=8, width=8, channels=3), bits=2)
    assert counted(classless, [-1] * 9)[1].sum(1).tolist() == [9]
    plain = make()
    plain.learn_codes(Pictures([0]))
    assert plain.codes is None and plain.parts() == {}
    assert flow.parts()["codes"].tolist() == flow.codes.tolist()  # pyright: ignore[reportOptionalMemberAccess]
    assert flow.parts()["codes"].dtype is torch.int64


def test_a_code_is_drawn_by_the_frequencies_of_its_class():
    flow = make(bits=1)
    flow.codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])

    def drawn(label: int | None) -> set[float]:
        told = flow.begin([DrawRequest(label=label, seed=seed) for seed in range(40)])[1]
        assert told.code is not None
        return set(told.code.flatten().tolist())

    assert (drawn(0), drawn(1), drawn(2), drawn(None)) == ({-1.0}, {1.0}, {1.0}, {-1.0, 1.0})
    flow.codes = torch.tensor([[1.0, 0.0]])
    assert drawn(2) == drawn(None) == {-1.0}


def test_a_change_goes_on_from_a_state_on_the_way():
    flow, image = make(), images(1)[0]
    noise, told, _ = flow.begin([DrawRequest(label=1, seed=4)])
    clean = from_pixels(torch.from_numpy(image))[None]
    state = 0.25 * clean + 0.75 * noise
    with torch.no_grad():
        landed = flow.model.act(state, torch.tensor([0.25]), cond=told).clean  # one step to the end lands there
    expected = to_pixels(landed, (8, 8, 3))[0]
    found = flow.draw(1, seed=4, edit=image, strength=0.75, num_steps=1)[0]
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("solver", ["euler", "heun", "renoise"])
def test_images_of_a_batch_are_those_drawn_alone_by_their_seeds(solver):
    flow = make()
    how: dict[str, Any] = {"solver": solver, "num_steps": 4}
    together = flow.draw("b", num_samples=3, seed=5, **how)
    for row, seed in enumerate((5, 6, 7)):
        alone = flow.draw("b", seed=seed, **how)
        assert alone.shape == (1, 8, 8, 3) and np.abs(together[row].astype(int) - alone[0]).max() <= 1
    again = flow.draw(1, num_samples=3, seed=5, batch_size=1, **how)
    assert np.abs(together.astype(int) - again).max() <= 1
    assert np.array_equal(flow.draw(None, **how), flow.draw(seed=0, **how))
    [drawn] = flow.generate([DrawRequest(label=1, seed=0)], DrawOptions(**how))
    assert drawn.nfe == {"heun": 3}.get(solver, 4) and drawn.index == 0


def test_guidance_needs_a_class_of_one_at_least_and_goes_both_ways():
    flow = make()
    rows = [DrawRequest(label=1, seed=1), DrawRequest(seed=2)]
    found = list(flow.generate(rows, DrawOptions(guidance_scale=3.0, num_steps=4)))
    assert [drawn.nfe for drawn in found] == [4, 4]
    free = flow.draw(seed=2, num_steps=2)[0]
    assert np.abs(found[1].pixels.astype(int) - free).max() <= 1, "without a class there is nothing to go beyond"
    with pytest.raises(UsageError, match="guidance"):
        flow.draw(guidance_scale=3.0, num_steps=4)


def test_options_at_their_limits():
    fines: tuple[dict[str, Any], ...] = (
        {"guidance_scale": 100.0}, {"num_steps": 1}, {"guidance_scale": 2.0, "num_steps": 2}, {"strength": 1.0},
        {"strength": 1e-6}, {"guidance_scale": 0.0, "num_steps": 2}, {"num_steps": image_flow.MOST},
    )  # fmt: skip
    for fine in fines:
        options = DrawOptions(**fine)
        assert isinstance(options.guidance_scale, float) and isinstance(options.strength, float)
    wrongs: tuple[dict[str, Any], ...] = (
        {"guidance_scale": 100.5}, {"guidance_scale": -0.1}, {"guidance_scale": 0.5, "num_steps": 1},
        {"strength": 0.0}, {"strength": 1.1}, {"num_steps": 0}, {"num_steps": image_flow.MOST + 1},
    )  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(UsageError):
            DrawOptions(**wrong)
    for wrong in ({"num_samples": True}, {"batch_size": 0}, {"seed": True}, {"num_samples": 0}, {"strength": "much"}):
        with pytest.raises(UsageError):
            make().draw(**cast(Any, wrong))
    with pytest.raises(UsageError, match="image to change"):
        make().draw(edit=np.zeros((8, 4, 3), np.uint8))


def test_images_that_have_been_states_are_the_same_in_any_number():
    flow, many = make(), images(131)
    assert np.array_equal(flow.given_back(many), many)
    latent = make(space=LatentGridConfig(factor=2, width=4, channels=2))
    found = latent.given_back(many[:3])
    one = latent.images_of(latent.model.space.encode(from_pixels(torch.from_numpy(many[2:3]))))
    assert np.abs(found[2].astype(int) - one[0]).max() <= 1


def test_a_shape_fits_its_images_or_is_refused():
    fits = shaped(ImageConfig(), CODEC)
    assert (fits.height, fits.width, fits.channels, fits.classes) == (8, 8, 3, 3)
    ImageFlow.check_codec(fits, CODEC)
    for other in (
        ImageCodec(height=9, width=8, channels=3, classes=CODEC.classes),
        ImageCodec(height=8, width=9, channels=3, classes=CODEC.classes),
        ImageCodec(height=8, width=8, channels=1, classes=CODEC.classes),
        ImageCodec(height=8, width=8, channels=3),
    ):
        with pytest.raises(ConfigError):
            ImageFlow.check_codec(fits, other)
    for name in ("height", "width", "channels", "classes", "bits"):
        wrong: dict[str, Any] = {name: -1}
        with pytest.raises(ConfigError):
            ImageConfig(**wrong)
    assert ImageConfig(bits=16).bits == 16
    with pytest.raises(ConfigError):
        ImageConfig(bits=17)
    with pytest.raises(ModelError, match="no blocks"):
        ImageFlow.trunk_of(make().model)
    dit = make(net=DitConfig(width=16, depth=1, heads=2)).model
    assert ImageFlow.trunk_of(dit) is cast(Any, dit.net).trunk


def test_stored_codes_are_those_of_all_classes_or_of_each():
    net, codes = make(bits=1).model, torch.tensor([[3, 4]])
    read = ImageFlow.stored(net, CODEC, {}, {"codes": codes}).codes
    assert read is not None and read.dtype is torch.float32 and read.tolist() == [[3.0, 4.0]]
    assert ImageFlow.stored(net, CODEC, {}, {"codes": codes.repeat(3, 1)}).codes is not None
    assert ImageFlow.stored(make().model, CODEC, {}, {"codes": codes}).codes is None
    for wrong in (codes[0], codes.repeat(2, 1), codes.repeat(1, 2), codes - 4, codes * 0):
        with pytest.raises(ConfigError, match="codes"):
            ImageFlow.stored(net, CODEC, {}, {"codes": wrong})
    bare = ImageCodec(height=8, width=8, channels=3)
    assert ImageFlow.stored(make(bare, bits=1).model, bare, {}, {"codes": codes}).codes is not None
    with pytest.raises(ConfigError, match="codes"):
        ImageFlow.stored(make(bare, bits=1).model, bare, {}, {"codes": codes.repeat(2, 1)})


def test_a_net_is_told_classes_by_number_and_none_by_one_more():
    net = make(bits=2).model
    told = net.told(torch.tensor([0, 2, -1, 3]))
    assert told.label is not None and told.label.tolist() == [0, 2, 3, 3]
    assert told.code is not None and told.code.shape == (4, 2) and not told.code.any()
    code = torch.ones(4, 2)
    assert net.told(told.label, code).code is code
    null = without_class(told, 3)
    assert null.label is not None and null.label.tolist() == [3] * 4 and null.code is told.code
    bare = make(ImageCodec(height=8, width=8, channels=3)).model.told(torch.tensor([-1, -1]))
    assert bare.label is None and bare.code is None and without_class(bare, 0) is bare


def test_a_code_is_read_by_three_halving_convolutions():
    torch.manual_seed(0)
    encoder, grid = CodeEncoder(3, 4, 3000), torch.randn(5, 3, 12, 12)
    x = grid
    for conv in cast(Any, encoder.convs):
        x = F.silu(F.conv2d(F.pad(x, (1, 1, 1, 1)), conv.weight, conv.bias)[:, :, ::2, ::2])
    assert len(encoder.convs) == 3 and x.shape[2:] == (2, 2)
    logits = x.mean((2, 3)) @ encoder.out.weight.T + encoder.out.bias
    assert torch.equal(encoder(grid), torch.where(logits < 0, -1.0, 1.0))
    weights = torch.arange(1.0, 5)
    (slope,) = torch.autograd.grad((encoder(grid) * weights).sum(), encoder.out.bias)
    torch.testing.assert_close(slope, (weights * (1 - logits.tanh() ** 2)).sum(0))
    assert CodeEncoder(1, 1, 10**9).out.in_features == 64 and CodeEncoder(1, 1, 0).out.in_features == 2
    flow = make(bits=2)
    clean = from_pixels(torch.from_numpy(images(2)))
    own = cast(Any, flow.model.encoder)(as_grid(clean, 8, 8))
    assert torch.equal(cast(Tensor, flow.model.code(clean)), own)


class Noting(ImageModel):
    """Notes what it is asked, and answers nothing but zeros."""

    asked: list[Any]

    def act(self, state: Tensor, t: Tensor, *, cond: Any, self_cond: Any = None) -> Estimate:
        self.asked.append((state, t, cond, self_cond))
        return Estimate(torch.zeros_like(state))


def noting(count: int, config: ImageObjectiveConfig, **changes: Any) -> tuple[Any, Any, ImageBatch]:
    net = make(**changes).model
    net.__class__ = Noting
    assert isinstance(net, Noting)
    net.asked = []
    labels = torch.arange(count) % 3
    batch = ImageBatch(pixels=torch.from_numpy(images(count)), label=labels, index=torch.arange(count))
    objective = matching(ImageConfig(time=TimeDensityConfig(kind="uniform")), config, measured := {})
    assert measured["density"] is objective.density and isinstance(objective, ImageMatching)
    return objective(net, batch, make_generator(3)), net.asked, batch


def test_times_are_the_densitys_and_codes_are_left_out_as_often_as_asked():
    for share in (0.0, 0.3, 1.0):
        config = ImageObjectiveConfig(class_dropout=share, code_dropout=share, weight_cap=1.0)
        loss, asked, batch = noting(500, config, bits=2)
        [(_, t, cond, self_cond)] = asked
        assert self_cond is None or not self_cond.any()
        assert 0 < t.min() < 0.02 and 0.98 < t.max() < 1 and len(set(t.tolist())) > 450
        without = cond.label == 3
        assert torch.equal(cond.label[~without], batch.label[~without])
        assert without.float().mean() == pytest.approx(share, abs=0.07)
        dropped = (cond.code == 0).all(1)
        assert dropped.float().mean() == pytest.approx(share, abs=0.07) and (cond.code[~dropped].abs() == 1).all()
        if 0 < share < 1:
            assert 0.03 < (dropped & without).float().mean() < 0.16, "apart from each other"
        clean = from_pixels(batch.pixels)
        torch.testing.assert_close(loss.total, clean.square().mean(), rtol=1e-4, atol=1e-5)  # a cap of 1 weighs alike
    for wrong in ({"class_dropout": -0.1}, {"class_dropout": 1.1}, {"code_dropout": -0.1}, {"code_dropout": 1.1}):
        with pytest.raises(ConfigError):
            ImageObjectiveConfig(**wrong)
    with pytest.raises(ConfigError):
        ImageObjectiveConfig(weight_cap=0.99)


def test_latents_are_drawn_and_their_own_noise_leaves_the_loss():
    """Of `velocity_matching`, the target with a posterior is what the state lets expect, so draws cost nothing."""
    space = LatentGridConfig(factor=2, width=4, channels=2, noise_floor=0.5)
    loss, asked, batch = noting(200, ImageObjectiveConfig(weight_cap=1.0), space=space)
    net = make(space=space).model
    mean, std = cast(Any, net.space).posterior(from_pixels(batch.pixels))
    [(state, t, _, _)] = asked
    assert state.shape == mean.shape
    late = t > 0.97
    drawn = (state[late] - t[late, None, None] * mean[late]) / (t[late, None, None] * std[late])
    assert 0.85 < drawn.std() < 1.15, "near the end a state is a draw about the encoder's mean"
    plain = mean.square().mean()
    drawn_too = plain + std.square().mean()
    assert plain < loss.total < drawn_too


def test_the_space_of_latents_is_taught_by_its_error_and_its_rate():
    net = make(space=LatentGridConfig(factor=2, width=4, channels=2, information=0.7)).model
    objective = reconstruction(net, measured := {})
    controller = measured["controller"]
    assert isinstance(controller, RateController) and controller.target == pytest.approx(0.7 * 4 * 4 * 2)
    batch = ImageBatch(pixels=torch.from_numpy(images(5)), label=torch.zeros(5).long(), index=torch.arange(5))
    space: Any = net.space
    image = from_pixels(batch.pixels)
    before = controller.weight
    with torch.no_grad():
        loss = objective(net, batch, make_generator(1))
        assert controller.weight == before, "nothing is observed while nothing is learned"
        mean, std = space.gaussian(image)
        sample = mean + std * torch.randn(mean.shape, generator=make_generator(1))
        error = (space.restored(sample) - image).square().mean()
        rate = (0.5 * (mean.square() + std.square() - 1) - std.log()).sum((1, 2)).mean()
    torch.testing.assert_close(loss.parts["reconstruction"], error)
    torch.testing.assert_close(loss.parts["rate"], rate, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.total, error + before * rate / (64 * 3), rtol=1e-4, atol=1e-5)
    assert loss.count == 5 and not space.std.eq(sample.flatten(0, 1).std(0)).any()
    again = Reconstruction(controller)(net, batch, make_generator(1))
    assert again.total.requires_grad and not cast(Tensor, again.parts["rate"]).requires_grad
    assert controller.weight != before and not torch.equal(space.std, torch.ones(2))
    assert again.parts["beta"] == controller.weight


def test_a_net_over_patches_is_compared_at_every_patch():
    """By hand: what both heads say of the trunks' answers, and the exchanged states in proportion to their size."""
    how: dict[str, Any] = {"net": DitConfig(width=16, depth=2, heads=2)}
    source, net = make(**how).model, make(**how).model
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=make_generator(1)))
    task = ImageMatching(ImageObjectiveConfig(), TimeDensityConfig(kind="uniform").build())
    imitation = FieldImitation(task, source, ImageFlow.trunk_of, (0, 1), outputs=0.5, states=2.0)
    batch = ImageBatch(pixels=torch.from_numpy(images(3)), label=torch.tensor([0, 1, 2]), index=torch.arange(3))
    found = imitation(net, batch, make_generator(2))
    said, states = [], []
    for each in (source, net):
        with watched(ImageFlow.trunk_of(each), (0, 1)) as calls, torch.no_grad():
            alone = task(each, batch, make_generator(2))
        said.append(cast(Any, each.net).head(calls[-1].hidden))
        states.append(calls[-1].states)
    outputs = (said[1] - said[0]).square().mean()
    errors = [(b - a).square().mean() / a.square().mean() for a, b in zip(*states, strict=True)]
    torch.testing.assert_close(found.parts["outputs"], outputs.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.parts["states"], torch.stack(errors).mean(), rtol=1e-4, atol=1e-6)
    expected = alone.total + 0.5 * outputs + 2.0 * torch.stack(errors).mean()
    torch.testing.assert_close(found.total, expected, rtol=1e-4, atol=1e-5)


def test_no_more_images_are_drawn_at_once_than_asked(monkeypatch):
    lm, sizes = make(), []
    act = lm.model.act
    monkeypatch.setattr(
        lm.model, "act", lambda state, *rest, **more: sizes.append(len(state)) or act(state, *rest, **more)
    )
    lm.draw(num_samples=5, batch_size=2, num_steps=1)
    assert sizes == [2, 2, 1]


def test_codes_are_counted_by_class_up_to_four_million_numbers():
    """Sixty-four classes with sixteen bits each are as many; one class more, and all are counted together."""
    for count, rows in ((64, 64), (65, 1)):
        codec = ImageCodec(height=8, width=8, channels=3, classes=tuple(f"c{i}" for i in range(count)))
        flow = ImageFlow(ImageModel(shaped(ImageConfig(net=NET, bits=16), codec)), codec)
        flow.learn_codes(Pictures([0, 1, 1]))
        assert flow.codes is not None and flow.codes.shape == (rows, 1 << 16)
