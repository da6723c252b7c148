"""The one schema of how to write: what every family follows, and each family's part.

Python, the command line and whoever serves requests read it: a field is an option, its docstring the help, its
metadata the least value that it takes. To add an option is to add a field to the class of its family.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Final, Literal, get_args

from manta.config import annotations_of, convert, from_dict, nearest
from manta.errors import UsageError

Style = Literal["consensus", "diverse"]
AlignedDecoder = Literal["", "aligned", "sequential", "verified"]
MaskedDecoder = Literal[
    "", "deferred", "block", "threshold", "confidence", "remask", "first_hitting", "doubt", "learned"
]
CausalDecoder = Literal["", "sequential", "verified"]
DecoderName = Literal[MaskedDecoder, CausalDecoder, AlignedDecoder]
CacheKind = Literal["none", "prefix", "dual"]

MOST: Final = 1_000_000
"""Largest number that an option counts: a bound on what a slip of the hand can ask for."""


MOST_SCALE: Final = 100
"""Largest factor of what a network says; beyond it states and sums are no numbers any more."""
LEAST_STRENGTH: Final = 0.001
"""Least strength of changing words."""


def option(default: Any, *, least: int, most: int = MOST) -> Any:
    """A field that is a number of at least `least` and at most `most`."""
    return field(default=default, metadata={"least": least, "most": most})


def choice(default: Any, among: Any) -> Any:
    """A field whose values are those that a `Literal` names, as its family understands them."""
    return field(default=default, metadata={"among": get_args(among)})


def spelled(name: str) -> str:
    """An option as messages name it; the command line turns it into its own spelling."""
    return f"`{name}`"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every family follows."""

    temperature: float = option(0.0, least=0)
    """Temperature of the words; 0 takes the most likely one, but where `fluency` says that words are drawn."""

    def __post_init__(self) -> None:
        annotations = annotations_of(type(self))
        for known in fields(self):
            checked = convert(annotations[known.name], getattr(self, known.name), spelled(known.name))
            object.__setattr__(self, known.name, checked)  # an integer is a number, too
            _check_size(known, checked)


def _check_size(known: Field[Any], value: Any) -> None:
    least = known.metadata.get("least")
    if value is None or least is None:
        return
    if value < least:
        raise UsageError(f"{spelled(known.name)} should be {least:g} or more, received {value:g}")
    if value > known.metadata["most"]:
        raise UsageError(f"{spelled(known.name)} should be at most {known.metadata['most']:,}, received {value}")


@dataclass(frozen=True, kw_only=True)
class Budgeted(Options):
    """Of families whose network calls are not their words."""

    num_steps: int = option(8, least=1)
    """Budget of sequential network calls for a text, at least 1; never exceeded."""


@dataclass(frozen=True, kw_only=True)
class Reworked(Budgeted):
    """Of families that take up again what was written."""

    rounds: int | None = option(None, least=0)
    """Rounds in which what was written is taken up again: a Manta-LM encodes, noises and writes it anew, a masked
    decoder takes its least certain words back, or as often as this each word that it doubts. Without it, the model's
    or decoder's own number."""


@dataclass(frozen=True, kw_only=True)
class Changed(Options):
    """Of families that can go on from a text that stands already."""

    strength: float = option(0.5, least=0)
    """How far `[[words to change]]` are taken back before they are written anew, at most 1: a Manta-LM
    noises them to the time that this share of its steps would reach, a masked model hides this share of them; 1
    forgets them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not LEAST_STRENGTH <= self.strength <= 1:
            raise UsageError(
                f"{spelled('strength')} should lie between {LEAST_STRENGTH:g} and 1, received {self.strength:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Chosen(Options):
    """Of families that can write several texts for a request, of which one is told."""

    choose: int = option(1, least=1)
    """Texts written side by side for a request, each with a seed of its own (an aligned model: on canvases, or
    with blanks, of as many sizes), of which one is told."""
    choose_by: Literal["risk", "likelihood"] = "risk"
    """The text most like the others, in the mean over their words and runs of up to four (least Bayes risk), or the
    one to which the model's exact likelihood is highest, which takes one more network call."""


@dataclass(frozen=True, kw_only=True)
class Styled(Options):
    """Of families that are trained on texts of several styles."""

    style: Style = "diverse"
    """`diverse` draws from the distribution of human texts; `consensus` seeks the most agreed-on text."""


@dataclass(frozen=True, kw_only=True)
class Fluent(Options):
    """Of families that tell many words in one call."""

    fluency: float | None = option(None, least=0, most=MOST_SCALE)
    """Weight of a model of three-word runs, counted in the training texts, beside the network's own chances: words told
    in one call, each without sight of the others, are chosen so that they go together. Those of a Manta-LM's `diverse`
    texts, and all words at a temperature, are drawn so, from the ten likeliest of each place, at temperature 1 where
    none is given. 0 takes each place by itself. Without it, 0.5 at temperature 0 for an aligned model, for the style
    `consensus` of a Manta-LM and for its `diverse` texts of up to 4 calls, if 100,000 tokens or more were counted, and
    0 elsewhere. It takes no network call."""


@dataclass(frozen=True, kw_only=True)
class Bounded(Options):
    """Of families that do not decide a text's length before they write it."""

    max_tokens: int | None = option(None, least=1)
    """Most tokens of a text that is written freely; without it, as many as the model writes, 128 of a published one.
    Left to right and block by block texts of our own models may be longer: what is read of them is the last of it."""


@dataclass(frozen=True, kw_only=True)
class Structured(Options):
    """Of families whose texts can be held to a pattern."""

    pattern: str | None = None
    """A regular expression that the whole text matches, such as `(yes|no)` or `[0-9]+ stars`. Every text does; masked
    models look for the likeliest text that does, left to right each next token is one that leads to a match."""
    schema: str | None = None
    """A JSON Schema, as JSON, that the text is an instance of; on the command line also a file that holds one."""


@dataclass(frozen=True, kw_only=True)
class MantaOptions(Reworked, Styled, Changed, Chosen, Fluent):
    """Of Manta-LM."""

    solver: Literal["euler", "heun", "renoise"] = "euler"
    """How the flow is followed."""
    flow_steps: int | None = option(None, least=0)
    """Calls that carry the plan; without it, the model's own split of the budget; 0: none, words without a plan."""
    guidance_scale: float = option(1.0, least=0, most=MOST_SCALE)
    """Strength of guiding the plan by the prompt; 1 is off, anything else takes two calls where one was."""
    noise_scale: float | None = option(None, least=0, most=MOST_SCALE)
    """Standard deviation of the initial noise; without it, 1 for `diverse` and 0.5 for `consensus`."""
    escape_scale: float = option(0.0, least=0, most=MOST_SCALE)
    """How far, in units of the state, what is fed back is moved away from the direction in which texts repeat
    (`flow.escape`, ACE); 0 is off; anything else needs the model to know the direction (`MantaLM.repetition`)."""


@dataclass(frozen=True, kw_only=True)
class Committed(Options):
    """Of families whose words are committed by a masked decoder."""

    decoder: DecoderName = choice("", MaskedDecoder)
    """How words are committed; without it, the model's own way, else deferred commitment."""
    confidence: Literal["probability", "margin", "entropy"] = "probability"
    """How sure the model is of a position."""
    threshold: float | None = None
    """Least confidence of a word committed beside the surest; without it, the decoder's own."""
    window_masked: int | None = option(None, least=1)
    """Most masked words in the window (deferred)."""
    window_width: int | None = option(None, least=1)
    """Most positions in the window (deferred)."""


@dataclass(frozen=True, kw_only=True)
class Decoded(Reworked, Committed):
    """Of masked families that have the whole text before them."""

    block_length: int | None = option(None, least=1)
    """Words of a block (block, threshold, confidence)."""
    cache: CacheKind = "none"
    """What is computed anew in a call: everything, the window and all after it, or the window alone."""
    refresh: int = option(32, least=0)
    """Words written between full calls when there is a cache; 0 makes every call a full one."""


@dataclass(frozen=True, kw_only=True)
class MaskedOptions(Decoded, Styled, Changed, Chosen, Structured, Fluent):
    """Of masked models."""

    think: int = option(0, least=0)
    """Network calls of `num_steps` that a model which carries thoughts makes before the first word is written."""


@dataclass(frozen=True, kw_only=True)
class Ended(Options):
    """Of masked families whose texts end where an end is committed, unless it is said otherwise."""

    ends_last: bool = False
    """Commit ends of texts only when nothing but ends is left to commit, of a block-causal model in its block: an end
    is sure before the words are and, committed early, shortens the text. Free texts of masked models always settle so;
    an early end saves the calls behind it."""


@dataclass(frozen=True, kw_only=True)
class PublishedOptions(Decoded, Changed, Bounded, Ended):
    """Of published masked models."""


@dataclass(frozen=True, kw_only=True)
class BlockOptions(Committed, Bounded, Chosen, Ended):
    """Of block-causal models."""

    block_steps: int | None = option(None, least=1)
    """Most network calls for a block; without it, as many as the decoder takes, a word a call at most."""
    block_extension: int = option(0, least=0)
    """Most places that a block may reach on into the next where its last words would be guesses (deferred); 0: none."""
    extension_step: int = option(4, least=1)
    """Places by which such a block grows at a time; a call whose words are taken back for it counts."""
    extension_below: float = 0.3
    """A block grows where the least confidence of a call's words is below this, and nothing but the block's end keeps
    the window from growing."""


@dataclass(frozen=True, kw_only=True)
class LeftToRightOptions(Bounded, Chosen):
    """Of models that tell the next word, published ones among them."""

    top_k: int | None = option(None, least=1)
    """Sample from the k likeliest words; without it, from all."""
    top_p: float = 1.0
    """Sample from the fewest words that make up this probability, in (0, 1]."""
    decoder: DecoderName = choice("", CausalDecoder)
    """A word a call, or words drafted ahead and checked in one call, which gives the same text in fewer; without it,
    verified where the model has a drafter and it saves time."""
    num_drafts: int | None = option(None, least=1)
    """Most words drafted a call (verified); without it, 7, or as many as save time where no decoder is named."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.top_p <= 1:
            raise UsageError(f"{spelled('top_p')} should be above 0 and at most 1, received {self.top_p:g}")


@dataclass(frozen=True, kw_only=True)
class AutoregressiveOptions(LeftToRightOptions, Structured):
    """Of autoregressive models."""


@dataclass(frozen=True, kw_only=True)
class AlignedOptions(Budgeted, AutoregressiveOptions, Fluent):
    """Of aligned models; top-k, top-p and what bounds or drafts words are for their left-to-right reading. Their prompt
    is read within the first of `num_steps` calls, and a text to fill takes one."""

    decoder: DecoderName = choice("", AlignedDecoder)
    """Through alignments, in `num_steps` calls; or left to right, by the teacher that the model has kept: a word a call
    or words drafted ahead and checked in one call, which gives the same text. Without it, through alignments."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(MantaOptions, MaskedOptions, PublishedOptions, BlockOptions, AlignedOptions):
    """How to write, whatever the family: the options of all of them. A model refuses those that are not its own."""

    decoder: DecoderName = ""
    """How words are committed; without it, the model's own way. Masked and block-causal models: deferred, block,
    threshold, confidence, remask or first_hitting, doubt for a masked one that doubts its words, and learned for one
    with a schedule of its own; left to right: sequential or verified, which gives the same text in fewer calls; aligned
    models: aligned, or these two."""


def given(options: GenerateOptions) -> dict[str, Any]:
    """The options that differ from their defaults: those that somebody asked for."""
    values = {known.name: (getattr(options, known.name), known.default) for known in fields(options)}
    return {name: value for name, (value, default) in values.items() if value != default}


def read_options(asked: Mapping[str, Any]) -> GenerateOptions:
    """Options by name, as a program or a line of JSON gives them.

    Args:
        asked: from a field's name to its value.

    Raises:
        UsageError: an unknown name (the nearest one is named), or a value that its option cannot have.
    """
    known = [each.name for each in fields(GenerateOptions)]
    for name in asked:
        if name not in known:
            raise UsageError(f"no option {name!r}{nearest(name, known)}")
    return from_dict(GenerateOptions, asked)
