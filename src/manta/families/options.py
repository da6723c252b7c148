"""Which options which family follows: what a model cannot follow is refused, never passed over in silence."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any, Final

from manta.errors import UsageError
from manta.families.events import GenerateOptions, spelled
from manta.masked import DECODERS, DecoderConfig

PUBLISHED: Final = ("llada", "Dream", "mdlm")
"""Families of published masked models."""
NAMES: Final[Mapping[str, str]] = {
    "manta": "Manta-LM",
    "masked": "masked models",
    "ar": "autoregressive models",
    **dict.fromkeys(PUBLISHED, "published masked models"),
}
"""Families in words."""
FOLLOWED: Final[Mapping[str, tuple[str, ...]]] = {
    "num_steps": ("manta", "masked", *PUBLISHED),
    "style": ("manta", "masked"),
    "solver": ("manta",),
    "guidance_scale": ("manta",),
    "noise_scale": ("manta",),
    "temperature": tuple(NAMES),
    "escape_scale": ("manta",),
    "decoder": ("masked", *PUBLISHED),
    "confidence": ("masked", *PUBLISHED),
    "threshold": ("masked", *PUBLISHED),
    "block_length": ("masked", *PUBLISHED),
    "window_masked": ("masked", *PUBLISHED),
    "window_width": ("masked", *PUBLISHED),
    "cache": ("masked", *PUBLISHED),
    "refresh": ("masked", *PUBLISHED),
    "top_k": ("ar",),
    "top_p": ("ar",),
    "flow_steps": ("manta",),
    "rounds": ("manta", "masked", *PUBLISHED),
    "max_tokens": ("ar", *PUBLISHED),
    "batch_size": tuple(NAMES),
}
"""The families that follow each option."""
DRAWN: Final = ("remask", "first_hitting")
"""Decoders that draw the places they commit, however sure the model is of them."""


def follows(family: str, option: str) -> bool:
    """Whether an option means something to a family; one that is not ours knows for itself.

    Args:
        family: name of a family.
        option: field of `GenerateOptions`.
    """
    return family not in NAMES or family in FOLLOWED[option]


def given(options: GenerateOptions) -> dict[str, Any]:
    """The options that differ from their defaults: those that somebody asked for."""
    values = {field.name: (getattr(options, field.name), field.default) for field in fields(options)}
    return {name: value for name, (value, default) in values.items() if default is not MISSING and value != default}


def applicable(options: GenerateOptions, family: str) -> tuple[GenerateOptions, tuple[str, ...]]:
    """The options that a family follows, for those who write with several.

    Args:
        options: for all families.
        family: of one model.

    Returns:
        The options with the others at their defaults, and the names of those that were given and are left out.
    """
    left_out = tuple(name for name in given(options) if not follows(family, name))
    defaults = {field.name: field.default for field in fields(options)}
    return replace(options, **{name: defaults[name] for name in left_out}), left_out


def check_options(options: GenerateOptions, family: str) -> None:
    """Refuse what would be passed over in silence: options of other families, and those that others make void.

    Args:
        options: of the requests.
        family: of the model that is to write.

    Raises:
        UsageError: naming the option and who follows it.
    """
    for option in given(options):
        if not follows(family, option):
            others = list(dict.fromkeys(NAMES[name] for name in FOLLOWED[option]))
            raise UsageError(
                f"{spelled(option)} means nothing to {NAMES[family]}; it is for {_listed(others)}; leave it out"
                + (", and bound the text with `max_tokens`" if option == "num_steps" else "")
            )
    if options.temperature == 0 and (options.top_k is not None or options.top_p < 1):
        cut = spelled("top_p" if options.top_k is None else "top_k")
        raise UsageError(f"{cut} cuts what is drawn, and nothing is at temperature 0; set `temperature`")
    if options.refresh != _REFRESH and options.cache == "none":
        raise UsageError(f"{spelled('refresh')} is for a cache, and there is none; set `cache`")


def check_decoder(options: GenerateOptions, decoder: DecoderConfig) -> None:
    """Refuse settings that a masked model's decoder does not have or does not look at.

    Args:
        options: of the request.
        decoder: which is to write.

    Raises:
        UsageError: naming the setting and the decoders that have it.
    """
    kind = decoder.kind
    for name in ("threshold", "block_length", "window_masked", "window_width", "rounds"):
        if getattr(options, name) is not None and not hasattr(decoder, name):
            others = [other for other, config in DECODERS.items() if any(f.name == name for f in fields(config))]
            raise UsageError(f"the {kind} decoder has no setting {name}; it is for {_listed(others)}; leave it out")
    if options.threshold is not None and getattr(decoder, "factor", None) is not None:
        raise UsageError(f"the model's {kind} decoder goes by a factor, not by a threshold; leave threshold out")
    if options.confidence != "probability" and (kind in DRAWN or getattr(decoder, "order", "") == "random"):
        others = [other for other in DECODERS if other not in DRAWN]
        raise UsageError(
            f"the {kind} decoder draws its places, whatever the confidence; {spelled('confidence')} is for "
            f"{_listed(others)}; leave it out"
        )
    if options.cache != "none" and not looks_at_parts(decoder) and options.block_length is None:
        raise UsageError(
            f"the {kind} decoder looks at the whole text in every call, so that a cache saves nothing; set "
            "`block_length`, choose the decoder deferred or block, or leave `cache` out"
        )


def looks_at_parts(decoder: DecoderConfig) -> bool:
    """Whether a decoder looks at a part of the text in a call, so that a cache saves computing the rest."""
    return decoder.kind == "deferred" or getattr(decoder, "block_length", None) is not None


_REFRESH: Final = next(field.default for field in fields(GenerateOptions) if field.name == "refresh")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
