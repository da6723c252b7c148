"""Figures that every family has: the way of the words, what disturbances do, and what becomes of a corrupted text."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.control import chain_response, correction, jump_concentration, path_length, simplex_jumps, symbol_flips
from manta.diagnosis.judging import Judgement
from manta.diagnosis.results import TIMES, Measured, Settings, on_common_times
from manta.diagnosis.system import System
from manta.text import MASK

NUM_WAYS = 4
"""Prompts whose ways are drawn."""
NUM_TIMELINES = 1
"""Texts drawn as they were written."""


def masked_mean(values: Float[Tensor, "*points b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "*points b"]:
    """Mean over the positions of each text, those without a value left out; nan where none has one."""
    return torch.where(mask, values, torch.nan).nanmean(-1)


def word_figures(system: System) -> Measured:
    """The way of the words: beliefs on the simplex, drafts and settled words.

    Figures: `simplex_path`, `simplex_concentration` (each word's, averaged), `pace_concentration` (the text's),
    `settled_flips`, `draft_flips` (times a word went back, a word). Profiles: `simplex_jumps`, `draft_flips`.
    """
    found, mask, trace = Measured(), system.mask, system.trace
    jumps = torch.stack([simplex_jumps(torch.stack(pair))[0] for pair in pairwise(trace.beliefs(system.vocab_size))])
    jumps = jumps * mask
    paces = masked_mean(jumps, mask)
    found.put(
        simplex_path=masked_mean(path_length(jumps), mask),
        simplex_concentration=masked_mean(jump_concentration(jumps), mask),
        pace_concentration=jump_concentration(paces),
        settled_flips=masked_mean(symbol_flips(trace.settled, unset=MASK).float(), mask),
        draft_flips=masked_mean(symbol_flips(trace.drafts(), unset=MASK).float(), mask),
    )
    travelled = torch.cat([torch.zeros_like(paces[:1]), paces.cumsum(0)])
    found.profile("way_travelled", TIMES, on_common_times(travelled / travelled[-1], system.lengths()))
    drafts = trace.drafts()
    changed = (drafts[1:] != drafts[:-1]) & (drafts[:-1] != MASK)
    flips = masked_mean(changed.float(), mask)
    gone_back = torch.cat([torch.zeros_like(flips[:1]), flips.cumsum(0)])
    found.profile("words_gone_back", TIMES, on_common_times(gone_back, system.lengths()))
    found.ways["words"] = plane(_expected_embeddings(system)[1:], [length - 1 for length in system.lengths()])
    found.timelines = list(_timelines(system))
    return found


def _expected_embeddings(system: System) -> Float[Tensor, "points b d"]:
    """The expected embedding of each text, the mean over its positions, before the first call and after each."""
    table, mask = system.lm.model.embedding.weight.detach(), system.mask
    weight = mask[..., None] / mask.sum(1)[:, None, None]
    return torch.stack([(belief @ table * weight).sum(1) for belief in system.trace.beliefs(system.vocab_size)])


def plane(points: Float[Tensor, "points b d"], lengths: Sequence[int]) -> list[tuple[list[float], list[float]]]:
    """The first trajectories, each in the plane of its own two main directions about its end.

    Args:
        points: trajectories.
        lengths: steps of each; what comes after is left out.
    """
    ways = []
    for row in range(min(NUM_WAYS, points.shape[1])):
        way = points[: lengths[row] + 1, row].double().cpu()
        centred = way - way.mean(0)
        _, _, directions = torch.linalg.svd(centred, full_matrices=False)
        flat = (way - way[-1]) @ directions[:2].T
        flat = torch.nn.functional.pad(flat, (0, 2 - flat.shape[1]))
        # Signs of singular vectors are arbitrary: all ways come from the left, and from above.
        flat = flat * torch.where(flat[0] > 0, -1.0, 1.0) * torch.tensor([1.0, -1.0])
        ways.append((flat[:, 0].tolist(), flat[:, 1].tolist()))
    return ways


def _timelines(system: System) -> Iterator[dict[str, object]]:
    """For the first texts, how much each call believed in the word that stands at the end."""
    lm, final = system.lm, system.tokens
    told = torch.stack(
        [belief.gather(-1, final[..., None])[..., 0] for belief in system.trace.beliefs(system.vocab_size)]
    )
    for row in range(min(NUM_TIMELINES, len(final))):
        where = system.mask[row]
        words = [_shown(lm.tokenizer.decode([token])) for token in final[row][where].tolist()]
        calls = system.lengths()[row]
        yield {"words": words, "belief": told[1 : calls + 1, row][:, where].tolist()}


def _shown(word: str) -> str:
    """A token as it can be read; a dot for what has no letters of its own."""
    return word.strip() if word.strip() and word.strip().isprintable() else "·"


def disturbance_figures(system: System, settings: Settings, judgement: Judgement) -> Measured:
    """Exchange words that stand at a time, continue, and compare the ends.

    Figures at each time t: `recovered@t`, `spread@t`, `gain@t`, `faithfulness_lost@t` and `likelihood_lost@t`, by
    which the undisturbed text was better.
    """
    found, clean = Measured(), judgement.of(system, system.tokens)
    for number, t in enumerate(settings.disturbed_at):
        standing = system.standing(t)
        exchangeable = (standing != MASK) & system.mask
        disturbed = system.corrupted(standing, settings.disturbed_share, exchangeable, 20 + number)
        end = system.continued(t, disturbed)
        ends = {id(standing): system.tokens, id(disturbed): end}
        response = chain_response(lambda words, ends=ends: ends[id(words)], standing, disturbed, system.mask)
        changed = (standing != disturbed).any(1)
        judged = judgement.of(system, end)
        lost = {name: clean[name] - judged[name] for name in clean}
        found.put(
            **{
                f"recovered@{t:g}": response.recovered,
                f"spread@{t:g}": response.spread.masked_fill(~changed, torch.nan),
                f"gain@{t:g}": response.gain,
                **{f"{name}_lost@{t:g}": torch.where(changed, value, torch.nan) for name, value in lost.items()},
            }
        )
    return found


def correction_figures(system: System, settings: Settings, judgement: Judgement) -> Measured:
    """Corrupt a finished text, put it back, write on, and keep the books; and the same of the text uncorrupted.

    Figures: `repaired` (of the words exchanged), `collateral` (of the others), `collateral_alone` (of all words, when
    nothing was wrong), `errors_left` (errors after over errors before) `faithfulness_lost@repair`.
    """
    found, truth, mask = Measured(), system.tokens, system.mask
    corrupted = system.corrupted(truth, settings.disturbed_share, mask, 30)
    repaired = system.rewritten(corrupted, settings.renoised_to)
    books = correction(truth, corrupted, repaired, mask)
    untouched = correction(truth, truth, system.rewritten(truth, settings.renoised_to), mask)
    found.put(
        repaired=books.repaired_share,
        collateral=books.collateral_share,
        collateral_alone=untouched.collateral_share,
        errors_left=books.remaining,
    )
    clean, after = judgement.of(system, truth), judgement.of(system, repaired)
    found.put(**{f"{name}_lost@repair": clean[name] - after[name] for name in clean})
    return found


def quality_figures(system: System, judgement: Judgement) -> Measured:
    """What the undisturbed texts are worth to the oracle and to the judge: `faithfulness`, `likelihood`."""
    found = Measured()
    found.put(**judgement.of(system, system.tokens))
    return found


def presence(tokens: Int64[Tensor, "b n"], texts: Sequence[str], word: str) -> Float[Tensor, "b"]:
    """1 where a text holds a word, else 0."""
    held = [float(word.lower() in text.lower().split()) for text in (_spaced(text) for text in texts)]
    return torch.tensor(held, dtype=torch.float64, device=tokens.device)


def _spaced(text: str) -> str:
    return "".join(char if char.isalnum() else " " for char in text)
