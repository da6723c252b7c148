"""What the oracle says of many generated texts, beside what it says of the corpus for the same prompts."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from manta.text.weather.oracle import check, log_probability, realise
from manta.text.weather.records import parse_prompt


def judge(pairs: Sequence[tuple[str, str]], seed: int = 0) -> dict[str, Any]:
    """Measures generated forecasts against the grammar they should follow.

    The comparison is one fresh draw of the grammar for each prompt, so that prompts that repeat count alike on both
    sides. A model that equals the grammar has the same distinct share and the same mean log-probability; a mode-seeking
    one has fewer distinct texts and a higher mean.

    Args:
        pairs: prompt and text; at least one.
        seed: of the draws to compare with.

    Returns:
        `num`; the shares `grammatical` and `faithful` with their standard errors; the shares of texts that differ from
        all others, `distinct` and `corpus_distinct`; `log_probability_mean` in nats over the faithful texts and
        `log_probability_stderr` (None where there are too few), and `corpus_log_probability_mean`; `errors`, the number
        of texts that are wrong in each slot, and under `grammar` of those that are not grammatical.

    Raises:
        DataError: a prompt is no weather record.
    """
    rng = random.Random(seed)
    verdicts = [check(prompt, text) for prompt, text in pairs]
    scores = [log_probability(*pair) for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.faithful]
    drawn = [(prompt, realise(parse_prompt(prompt), rng)) for prompt, _ in pairs]
    errors: Counter[str] = Counter()
    for verdict in verdicts:
        kinds = {error.split(":")[0].split()[0] for error in verdict.errors} if verdict.grammatical else {"grammar"}
        errors.update(kinds)
    mean, stderr = _mean(scores)
    return {
        "num": len(pairs),
        **_share("grammatical", [verdict.grammatical for verdict in verdicts]),
        **_share("faithful", [verdict.faithful for verdict in verdicts]),
        "distinct": _distinct([text for _, text in pairs]),
        "corpus_distinct": _distinct([text for _, text in drawn]),
        "log_probability_mean": mean,
        "log_probability_stderr": stderr,
        "corpus_log_probability_mean": _mean([log_probability(*pair) for pair in drawn])[0],
        "errors": dict(errors.most_common()),
    }


def _share(name: str, values: Sequence[bool]) -> dict[str, float]:
    share = sum(values) / len(values)
    return {name: share, f"{name}_stderr": math.sqrt(share * (1 - share) / len(values))}


def _distinct(texts: Sequence[str]) -> float:
    return len(set(texts)) / len(texts)


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean of a sample and its standard error, None where the sample is too small for it."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
