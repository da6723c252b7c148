"""The adjoint of a chain of commitments: what reaches the decisions of each step."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.control import chain_adjoint, hard_commit, relaxed_commit, straight_through_commit
from manta.control.adjoint import Adjoint
from manta.diagnosis.canvas_systems import CanvasSystem
from manta.diagnosis.results import TIMES, Measured, Settings, on_common_times, thirds
from manta.diagnosis.systems import AutoregressiveSystem
from manta.families.batching import padded_width
from manta.text import MASK

COMMITS = {"hard": hard_commit, "straight_through": straight_through_commit, "relaxed": relaxed_commit}
"""How a step commits: as it is run, and two surrogates that let a gradient pass."""


def adjoint_figures(system: CanvasSystem | AutoregressiveSystem, settings: Settings) -> Measured:
    """How much of the end's gradient reaches the logits that the words were chosen by.

        |dC / d logits_k| / |lambda_N| at the positions that step k settled, root mean square over the probes

    Figures, for the steps as they are run and for both surrogates (`…_straight_through`, `…_relaxed`):
    `adjoint_least`, `adjoint_largest` over the steps, nan where it is absent; `adjoint_early_over_late`, the first
    third of the steps over the last, which has no unit and so compares between families; `controls_without_gradient`,
    the share of the settled words whose logits no gradient reaches. Profiles: `adjoint_…` of the surrogates, over the
    last third of the steps.
    """
    found, lengths, width = Measured(), system.lengths(), system.width
    mask = system.mask[:, :width]
    canvas = (padded_width(system.places), system.vocab_size)
    draws = [system.draws(60 + i, canvas, width) * mask[..., None] for i in range(settings.probes)]
    probes = torch.stack(draws)
    probes = probes / probes.flatten(2).norm(dim=2)[..., None, None]
    points = system.trace.settled[:, :, :width]
    # One step a token: what the decoder settles at each step is known from the words that stood before and after.
    chosen = (points[1:] != points[:-1]) & (points[1:] != MASK) & mask
    for name, commit in COMMITS.items():
        chain, start = system.chain(commit)
        adjoint = chain_adjoint(chain, start, probes, known=~mask)
        suffix = "" if name == "hard" else f"_{name}"
        steps, least, largest, without = decisions(adjoint, chosen)
        early, late = thirds(steps.cpu(), lengths)
        found.put(
            **{
                f"adjoint_least{suffix}": least,
                f"adjoint_largest{suffix}": largest,
                f"adjoint_early_over_late{suffix}": early / late,
                f"controls_without_gradient{suffix}": without,
            }
        )
        if suffix:
            found.profile(
                f"adjoint{suffix}", TIMES, on_common_times(steps.cpu() / late, [max(1, n - 1) for n in lengths])
            )
    return found


def decisions(
    adjoint: Adjoint, chosen: Bool[Tensor, "steps b n"]
) -> tuple[Float[Tensor, "steps b"], Float[Tensor, "b"], Float[Tensor, "b"], Float[Tensor, "b"]]:
    """The relative gradient at the steps' decisions, its extremes, and the share of decisions that none reaches.

    Args:
        adjoint: of a chain.
        chosen: True where a step settled a word.

    Returns:
        The relative gradient of each step, "steps b", nan where it settled no word or has none; least and largest over
        the steps, nan where all are; the share.
    """
    end = adjoint.states[:, -1].square().nansum(dim=(0, 2)).sqrt()
    controls = adjoint.controls.masked_fill(~chosen, torch.nan)
    steps = controls.square().nansum(dim=(0, 3)).sqrt() / end
    there = (~controls.isnan()).any(0).any(2)
    least = steps.masked_fill(~there, torch.inf).amin(0)
    largest = steps.masked_fill(~there, -torch.inf).amax(0)
    none = ~there.any(0)
    reached = ((adjoint.controls > 0) & chosen).any(0).sum(dim=(0, 2))
    share = 1 - reached / chosen.sum(dim=(0, 2))
    steps = steps.masked_fill(~there, torch.nan)
    return steps, least.masked_fill(none, torch.nan), largest.masked_fill(none, torch.nan), share
