"""From what a client asks to what a model writes."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from manta.errors import RequestError, UsageError
from manta.families.asked import bounds
from manta.families.events import Request
from manta.families.options import GenerateOptions, read_options
from manta.server.schemas import Asking, Chat, Completion, Edit, Infill, options_of
from manta.server.settings import ServeSettings

CALLS: Final = ("num_steps", "flow_steps", "block_steps", "rounds", "think")
"""Options that count network calls."""
DRAWN_SEEDS: Final = 2**48
"""Seeds that are drawn lie below it: exact in JSON, whoever reads it."""


@dataclass(frozen=True)
class Asked:
    """Texts to be written, and how they are told."""

    requests: tuple[Request, ...]
    """One a text."""
    stops: tuple[str, ...]
    """A text ends before the first of them."""
    most: int | None
    """Tokens that a text is cut to; None where the model itself bounds it."""
    wanted: int | None
    """Most tokens that were asked for."""
    before: tuple[str, ...]
    """What is put before each text."""
    copies: int = 1
    """Texts for each prompt, one after the other."""


def _refuse(asked: Any) -> None:
    """Refuse what would be passed over in silence, or answered with a made-up number."""
    logprobs = getattr(asked, "logprobs", None)
    if logprobs is not None and logprobs is not False:  # 0 asks for the chosen token's
        raise UsageError(
            "`logprobs` are not told: what a parallel model knows of a word on the way is no probability of the text; "
            "manta evaluate and manta choose tell likelihoods, and whether they are exact or bounds"
        )
    for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
        if getattr(asked, name, None):
            raise UsageError(f"`{name}` means nothing to these models; leave it out")
    if getattr(asked, "suffix", None) is not None:
        raise UsageError('`suffix` is not followed; /v1/infill fills blanks: "text": "The ___ is near the ___"')
    best, n = getattr(asked, "best_of", None), asked.n or 1
    if best not in (None, n):
        raise UsageError("`best_of` is not followed; `choose` writes several texts and tells one")
    if asked.diffusing and not asked.stream:
        raise UsageError("`diffusing` tells drafts, and only a stream can; set `stream`")
    if asked.stream_options is not None and not asked.stream:
        raise UsageError("`stream_options` are for a stream; set `stream`")


def read_asked(asked: Asking, lm: Any, settings: ServeSettings) -> Asked:
    """What a request of any endpoint asks of a model.

    Args:
        asked: as parsed.
        lm: the model.
        settings: limits.

    Raises:
        UsageError: what does not apply, or is beyond a limit.
        RequestError: the model cannot do what the endpoint is for.
    """
    _refuse(asked)
    given, n = options_of(asked), asked.n or 1
    if isinstance(asked, Chat) and asked.max_completion_tokens is not None:
        given.setdefault("max_tokens", asked.max_completion_tokens)
    wanted = given.get("max_tokens")
    options = read_options(given)
    _check_limits(options, settings)
    most = None
    if wanted is not None and not bounds(lm.family, options):
        most, options = wanted, replace(options, max_tokens=None)
    lm.check(options)
    lm.check_task(asked.task)
    seed = secrets.randbelow(DRAWN_SEEDS) if asked.seed is None else asked.seed
    bases = _bases(asked, lm, settings)
    if len(bases) * n * options.choose > settings.max_texts:
        raise UsageError(
            f"{len(bases)} prompts with `n` {n} and `choose` {options.choose} are more than the {settings.max_texts} "
            "texts of one request; send several"
        )
    requests = tuple(
        replace(base, task=asked.task, seed=seed + i * n + j, options=options)
        for i, base in enumerate(bases)
        for j in range(n)
    )
    stops = () if asked.stop is None else (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop)
    echo = isinstance(asked, Completion) and bool(asked.echo)
    if echo and lm.prompted is not None:
        raise UsageError("`echo` is for models that go on from their prompt, and this one answers it; leave it out")
    before = tuple((request.prompt or "") if echo else "" for request in requests)
    return Asked(requests, tuple(stop for stop in stops if stop), most, wanted, before, n)


def _check_limits(options: GenerateOptions, settings: ServeSettings) -> None:
    for name in CALLS:
        if (getattr(options, name) or 0) > settings.max_calls:
            raise UsageError(f"`{name}` is at most {settings.max_calls} here, received {getattr(options, name)}")
    if (options.max_tokens or 0) > settings.max_new_tokens:
        raise UsageError(f"`max_tokens` is at most {settings.max_new_tokens} here, received {options.max_tokens}")


def _bases(asked: Asking, lm: Any, settings: ServeSettings) -> Sequence[Request]:
    """A request for each prompt."""
    if isinstance(asked, Infill | Edit):
        edit = isinstance(asked, Edit)
        if not (lm.changes if edit else lm.fills):
            raise RequestError(
                f"a model of the family {lm.family} cannot {'change a text' if edit else 'fill blanks'}; /v1/models "
                "says which can"
            )
        if not edit and "[[" in asked.text:
            raise RequestError("/v1/infill fills blanks `___`; words to change, in `[[…]]`, are for /v1/edit")
        if not edit and "___" not in asked.text:
            raise RequestError("the text has no blank `___` to fill")
        sizes = [int(size) for size in re.findall(r"_{3,}\{(\d{1,12})\}", asked.text)]
        if max(sizes, default=0) > settings.max_new_tokens:
            raise UsageError(f"a blank holds at most {settings.max_new_tokens} tokens here, received {max(sizes)}")
        text = asked.text if not edit or "[[" in asked.text else f"[[{asked.text}]]"
        return [Request(prompt=asked.prompt, infill=text)]
    if isinstance(asked, Chat):
        return [_turns(asked, lm)]
    assert isinstance(asked, Completion)
    prompts = asked.prompt if isinstance(asked.prompt, list) else [asked.prompt]
    if lm.prompted is False and any((prompt or "").strip() for prompt in prompts):
        raise RequestError(
            "the model was trained on texts without prompts, so it cannot answer one; leave `prompt` out"
            + (', or let it go on from a beginning by /v1/infill: "Once upon a time ___{40}"' if lm.fills else "")
        )
    return [Request(prompt=prompt) for prompt in prompts]


def _turns(asked: Chat, lm: Any) -> Request:
    """A conversation: perhaps a system's message, then turns of user and assistant, a user's the last."""
    if lm.frame is None:
        raise RequestError("the model has no chat frame, so it holds no conversations; ask /v1/completions")
    roles = [message.role for message in asked.messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if len(turns) % 2 == 0 or any(role != ("user", "assistant")[k % 2] for k, role in enumerate(turns)):
        raise RequestError(
            "`messages` should be a system's, if any, and then by turns a user's and an assistant's, ending with a "
            f"user's; received {', '.join(roles[:8])}"
        )
    *earlier, last = [(message.role, message.words) for message in asked.messages]
    if not last[1].strip():
        raise RequestError("the last message is empty")
    return Request(prompt=last[1], history=tuple(earlier))
