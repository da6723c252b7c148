"""What the batches of a step share: observations come after it, in order, and decisions are the same for all."""

import torch

from manta.flow import TimeDensityConfig
from manta.runtime import make_generator
from manta.spaces.rate import RateController, Standardised
from manta.step import deciding, is_shared, observe, shared_step, stream


class Sum:
    def __init__(self) -> None:
        self.values: list[int] = []

    def take(self, value: int) -> None:
        self.values.append(value)


def test_a_batch_by_itself_is_observed_at_once_and_one_of_several_after_its_step():
    seen = Sum()
    observe(seen, 1)
    with shared_step(make_generator(0)) as step:
        assert is_shared()
        observe(seen, 2)
        observe(seen, 3)
        assert seen.values == [1]
    assert not is_shared() and [values for _, values in step.told] == [(2,), (3,)]
    for observer, values in step.told:
        observer.take(*values)
    assert seen.values == [1, 2, 3]


def test_what_decides_comes_from_the_step_and_from_a_batch_by_itself():
    own, common = make_generator(1), make_generator(2)
    assert deciding(own) is own
    with shared_step(common):
        assert deciding(own) is common
    assert deciding(own) is own


def test_a_stream_belongs_to_its_place():
    draws = {
        place: torch.rand(4, generator=stream(7, *place)).tolist() for place in [(0,), (1,), (0, 0), (0, 1), (1, 0)]
    }
    assert len({tuple(values) for values in draws.values()}) == len(draws)
    assert torch.rand(4, generator=stream(7, 0, 1)).tolist() == draws[0, 1]
    assert torch.rand(4, generator=stream(8, 0, 1)).tolist() != draws[0, 1]


def test_every_observer_learns_the_same_after_the_step():
    """A density, a controller and running statistics, told at once and told later."""
    latents, t, loss = (
        torch.randn(9, 3, generator=make_generator(3)),
        torch.tensor([0.2, 0.7]),
        torch.tensor([1.0, 2.0]),
    )

    def observed(later: bool) -> list[object]:
        density, controller, space = TimeDensityConfig().build(), RateController(10.0), Standardised()
        space.hold_statistics(3)

        def tell() -> None:
            density.observe(t, loss)
            controller.observe(30.0)
            space.track(latents)

        if later:
            with shared_step(make_generator(0)) as step:
                tell()
            assert controller.rate is None and space.mean.abs().sum() == 0
            for observer, values in step.told:
                observer.take(*values)
        else:
            tell()
        measured = [values.tolist() for values in density.measured_loss()]
        return [measured, controller.log_weight, controller.rate, space.mean.tolist(), space.std.tolist()]

    assert observed(False) == observed(True)
