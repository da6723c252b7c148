"""What is asked of a family that it does not follow is refused by name, never passed over in silence."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from manta.errors import UsageError
from manta.families import FAMILIES
from manta.families.options import GenerateOptions, given, spelled


def follows(family: str, option: str) -> bool:
    """Whether an option means something to a family; one that is not ours knows for itself.

    Args:
        family: name of a family.
        option: field of `GenerateOptions`.
    """
    return family not in FAMILIES or option in [known.name for known in fields(FAMILIES[family].options)]


def accepts(family: str, option: str, value: Any) -> bool:
    """Whether an option may have a value for a family that follows it.

    Args:
        family: name of a family.
        option: field of `GenerateOptions`.
        value: of it.
    """
    if family not in FAMILIES:
        return True
    among = [known.metadata.get("among") for known in fields(FAMILIES[family].options) if known.name == option]
    return not among or among[0] is None or value in among[0]


def bounds(family: str, options: GenerateOptions) -> bool:
    """Whether a model that writes as the options say follows `max_tokens`; others decide a text's length themselves.

    Args:
        family: name of a family.
        options: of the request.
    """
    through_alignments = family == "aligned" and options.decoder not in ("sequential", "verified")
    return follows(family, "max_tokens") and not through_alignments


def followers(option: str) -> tuple[str, ...]:
    """The families that follow an option, in words."""
    return tuple(dict.fromkeys(row.words for name, row in FAMILIES.items() if follows(name, option)))


def applicable(options: GenerateOptions, family: str) -> tuple[GenerateOptions, tuple[str, ...]]:
    """The options that a family follows, for those who write with several.

    Args:
        options: for all families.
        family: of one model.

    Returns:
        The options with the others at their defaults, and the names of those that were given and are left out.
    """
    left_out = tuple(
        name for name, value in given(options).items() if not (follows(family, name) and accepts(family, name, value))
    )
    defaults = {known.name: known.default for known in fields(options)}
    return replace(options, **{name: defaults[name] for name in left_out}), left_out


def check_options(options: GenerateOptions, family: str) -> None:
    """Refuse what would be passed over in silence: options of other families, and those that others make void.

    Args:
        options: of the requests.
        family: of the model that is to write.

    Raises:
        UsageError: naming the option, who follows it and what to do.
    """
    for name, value in given(options).items():
        if not follows(family, name):
            bounded = name == "num_steps" and follows(family, "max_tokens")
            raise UsageError(
                f"{spelled(name)} means nothing to {FAMILIES[family].words}; it is for {listed(followers(name))}; "
                "leave it out" + (", and bound the text with `max_tokens`" if bounded else "")
            )
        if not accepts(family, name, value):
            fitting = [other for other in FAMILIES if follows(other, name) and accepts(other, name, value)]
            others = tuple(dict.fromkeys(FAMILIES[other].words for other in fitting))
            raise UsageError(
                f"the {value} {name} means nothing to {FAMILIES[family].words}; it is for {listed(others)}; leave it "
                "out"
            )
    if options.temperature == 0 and (options.top_k is not None or options.top_p < 1):
        cut = spelled("top_p" if options.top_k is None else "top_k")
        raise UsageError(f"{cut} cuts what is drawn, and nothing is at temperature 0; set `temperature`")
    if "choose_by" in given(options) and options.choose == 1:
        raise UsageError(f"{spelled('choose_by')} is for choosing, and there is one text; set {spelled('choose')}")
    if "refresh" in given(options) and options.cache == "none":
        raise UsageError(f"{spelled('refresh')} is for a cache, and there is none; set `cache`")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
