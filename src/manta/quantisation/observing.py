"""What the maps of a net read while it works: ranges of every channel by time, and some rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from manta.nets.clock import Clock, clocked, start_clock, within
from manta.nets.trunk import Trunk
from manta.runtime import make_generator

KEPT_OF_TIME: Final = 48
"""Most rows of each time that are kept."""
KEPT_OF_CALL: Final = 24
"""Most rows of a call that are kept, so that they are of several."""
KEPT: Final = 2048
"""Most rows that are kept of a map that knows no times."""
IMAGES_OF_CALL: Final = 4
"""Most images of a call whose neighbourhoods are taken apart."""
DIGITS: Final = 4
"""Decimals of a time by which it is told from another."""


@dataclass
class Moment:
    """What a map reads at one time."""

    low: Float[Tensor, " i"]
    """Of each channel."""
    high: Float[Tensor, " i"]
    """Of each channel."""
    rows: list[Float[Tensor, "r k"]] = field(default_factory=list)
    """Some of them; of a convolution, all that its kernel reads at a place, channel by channel."""

    @property
    def sample(self) -> Float[Tensor, "r k"]:
        """The rows that are kept."""
        return torch.cat(self.rows)


@dataclass
class Observed:
    """What a map reads."""

    moments: dict[float | None, Moment] = field(default_factory=dict)
    """By time; None of a map that is told none."""
    most_places: int = 0
    """Most rows of a call for each row of its batch: 1 for what is worked out once a request."""

    @property
    def times(self) -> list[float | None]:
        """In ascending order."""
        return sorted(self.moments, key=lambda time: -1.0 if time is None else time)

    @property
    def timed(self) -> bool:
        """Whether the map is told times, and more than one."""
        return len(self.moments) > 1


@torch.no_grad()
def observed(net: nn.Module, work: Callable[[], object]) -> dict[str, Observed]:
    """Watch the linear maps and convolutions of a net.

    Of rows with padding, as the masks of its trunks have it, nothing is seen.

    Args:
        net: any.
        work: makes it work, such as writing texts.

    Returns:
        What each map has read, by its name; maps that were not called are left out.
    """
    found: dict[str, Observed] = {}
    with _hooked(net, found):
        work()
    return found


@contextmanager
def _hooked(net: nn.Module, found: dict[str, Observed]) -> Iterator[None]:
    hooks: list[Any] = []
    masks: list[Tensor | None] = []
    clocks: dict[str, Clock] = {}
    for name, part in clocked(net):
        clocks[within(name)], own = start_clock(part)
        hooks += own
    for part in net.modules():
        if isinstance(part, Trunk):
            hooks.append(part.register_forward_pre_hook(lambda _, args: masks.append(_mask_of(args[1]))))
            hooks.append(part.register_forward_hook(lambda *_: _leave(masks), always_call=True))
    generator = make_generator(0)
    for name, part in net.named_modules():
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1):
            clock = next((each for prefix, each in clocks.items() if name.startswith(prefix)), None)
            hooks.append(part.register_forward_pre_hook(_looking(found, name, clock, masks, generator)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for _, part in clocked(net):
            del part.clock  # pyright: ignore[reportAttributeAccessIssue]


def _leave(masks: list[Tensor | None]) -> None:
    masks.pop()


def _mask_of(context: Any) -> Tensor | None:
    return getattr(context if hasattr(context, "mask") else context[0], "mask", None)


def _looking(
    found: dict[str, Observed],
    name: str,
    clock: Clock | None,
    masks: list[Tensor | None],
    generator: torch.Generator,
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def look(part: nn.Module, args: tuple[Any, ...]) -> None:
        time = None
        if clock is not None and clock.time is not None:
            if clock.one is None:  # rows of several times are looked at elsewhere
                return
            time = round(clock.one, DIGITS)
        x: Tensor = args[0].detach().float()
        into = found.setdefault(name, Observed())
        if isinstance(part, nn.Conv2d):
            into.most_places = max(into.most_places, x.shape[2] * x.shape[3])
            channels = x.movedim(1, -1).flatten(0, 2)
            few = torch.randperm(len(x), generator=generator)[:IMAGES_OF_CALL].to(x.device)
            where: Any = {name: getattr(part, name) for name in ("dilation", "padding", "stride")}
            rows = F.unfold(x[few], cast(Any, part.kernel_size), **where).transpose(1, 2).flatten(0, 1)
        else:
            into.most_places = max(into.most_places, x.shape[1:-1].numel())
            mask = masks[-1] if masks else None
            rows = channels = x[mask] if mask is not None and mask.shape == x.shape[:-1] else x.flatten(0, -2)
        if len(rows):
            _add(into, time, channels, rows, generator)

    return look


def _add(
    into: Observed,
    time: float | None,
    channels: Float[Tensor, "c i"],
    rows: Float[Tensor, "r k"],
    generator: torch.Generator,
) -> None:
    low, high = channels.amin(0).cpu(), channels.amax(0).cpu()
    moment = into.moments.setdefault(time, Moment(low, high))
    moment.low, moment.high = torch.minimum(moment.low, low), torch.maximum(moment.high, high)
    room = (KEPT if time is None else KEPT_OF_TIME) - sum(map(len, moment.rows))
    most = min(room, KEPT_OF_CALL if time is not None else 4 * KEPT_OF_CALL)
    if most > 0:
        chosen = torch.randperm(len(rows), generator=generator)[:most]
        moment.rows.append(rows[chosen.to(rows.device)].cpu())
