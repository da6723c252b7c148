"""What the endpoints take, made from the one schema of options, so that a new option is served as soon as it exists."""

from dataclasses import fields
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from manta.config import field_docs
from manta.families.options import MOST, GenerateOptions
from manta.runtime import MAX_SEED

LONGEST: Final = 1 << 20
"""Characters of the longest string."""
MOST_STOPS: Final = 16
"""Strings that end a text."""
LONGEST_STOP: Final = 200
"""Characters of one of them."""
MOST_PROMPTS: Final = 8
"""Prompts of a diagnosis."""

Text = Annotated[str, Field(max_length=LONGEST)]
Stop = Annotated[str, Field(max_length=LONGEST_STOP)]


class Strict(BaseModel):
    """A part of a request: no unknown fields, no value of another type than its own."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """What a stream tells besides the text."""

    include_usage: bool = Field(False, description="A last chunk with the tokens and network calls of all texts.")


class TextPart(Strict):
    """A part of a message that is text, which is the only kind there is."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text | list[TextPart]

    @property
    def words(self) -> str:
        """Its text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Asking(Strict):
    """What every request that writes may say."""

    model: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="A name of /v1/models; without it the first."
    )
    task: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="Which of its tasks a model that tells some apart is asked for; see /v1/models."
    )
    n: Annotated[int, Field(ge=1, le=MOST)] | None = Field(None, description="Texts for each prompt; 1 without it.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None,
        description="Sample j of prompt i is written with seed + i·n + j; without one a seed is drawn, and told.",
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = Field(
        None, description="A text ends before the first of these strings."
    )
    stream: bool | None = Field(None, description="Server-sent events: text that stands, then usage, then `[DONE]`.")
    stream_options: StreamOptions | None = None
    diffusing: bool | None = Field(
        None, description="A stream tells drafts, too: chunks without text, of the type `diffusion_frame`."
    )
    user: Annotated[str, Field(max_length=1000)] | None = Field(None, description="Taken, and not looked at.")


_OPTIONS: dict[str, Any] = {}
_HINTS, _DOCS = get_type_hints(GenerateOptions), field_docs(GenerateOptions)
for _known in fields(GenerateOptions):
    _least = _known.metadata.get("least")
    _how: dict[str, Any] = {} if _least is None else {"ge": _least}
    if _HINTS[_known.name] in (int, int | None):
        _how["le"] = MOST
    _kind: Any = Annotated[_HINTS[_known.name], Field(**_how)] if _how else _HINTS[_known.name]
    # A field may not have a name that every class of pydantic has, such as `schema`.
    _called = f"{_known.name}_" if hasattr(BaseModel, _known.name) else _known.name
    _OPTIONS[_called] = (_kind | None, Field(None, alias=_known.name, description=_DOCS.get(_known.name, "")))

Optioned: Any = create_model("Optioned", __base__=Asking, **_OPTIONS)
"""The same with the options of all families; a model refuses those that are not its own."""


class Completion(Optioned):
    """A request of /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1)] | None = Field(
        None, description="What the text answers to, or goes on from in a published model; several in a list."
    )
    echo: bool | None = Field(None, description="The prompt before the text, of models that go on from it.")
    best_of: Annotated[int, Field(ge=1)] | None = Field(None, description="As `n`; to choose among texts, `choose`.")
    logprobs: int | None = Field(None, description="Not told, so it is refused.")
    suffix: Text | None = Field(None, description="Refused: /v1/infill fills blanks.")
    logit_bias: dict[str, float] | None = Field(None, description="Refused unless empty.")
    presence_penalty: float | None = Field(None, description="Refused unless 0.")
    frequency_penalty: float | None = Field(None, description="Refused unless 0.")


class Chat(Optioned):
    """A request of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST)] | None = Field(None, description="As `max_tokens`.")
    logprobs: bool | None = Field(None, description="Not told, so true is refused.")
    presence_penalty: float | None = Field(None, description="Refused unless 0.")
    frequency_penalty: float | None = Field(None, description="Refused unless 0.")


class Infill(Optioned):
    """A request of /v1/infill."""

    text: Text = Field(description="With blanks: `___` for up to 8 tokens, `___{n}` for up to n.")
    prompt: Text | None = Field(None, description="What the text answers to.")


class Edit(Optioned):
    """A request of /v1/edit."""

    text: Text = Field(description="A text to change, as far as `strength` says: all of it, or its `[[words]]`.")
    prompt: Text | None = Field(None, description="What the text answers to.")


class Diagnosing(Strict):
    """A request of /v1/diagnoses."""

    model: Annotated[str, Field(max_length=1000)] | None = Field(None, description="A name of /v1/models.")
    prompts: Annotated[list[Text], Field(max_length=MOST_PROMPTS)] = Field(
        default=[], description="What the model is watched answering, two at least for a model of prompts."
    )
    num_steps: Annotated[int, Field(ge=2, le=64)] = Field(8, description="Network calls of a text.")


def described(options: type) -> list[dict[str, Any]]:
    """What programs have to know of a family's options to show them to people.

    Args:
        options: a class of `families.options`.
    """
    docs, hints = field_docs(options), get_type_hints(options)
    rows = []
    for known in fields(options):
        parts = (hints[known.name], *get_args(hints[known.name]))
        named = [value for part in parts for value in get_args(part) if isinstance(value, str)]
        kinds = [part.__name__ for part in parts if part in (bool, int, float, str)]
        named = ["true"] if kinds == ["bool"] else named
        rows.append(
            {
                "name": known.name,
                "type": kinds[0] if kinds else "str",
                "default": known.default,
                "least": known.metadata.get("least"),
                "choices": list(known.metadata.get("among") or named) or None,
                "help": docs.get(known.name, ""),
            }
        )
    return rows


def options_of(asked: Any) -> dict[str, Any]:
    """The options of a request, those left out or null apart."""
    return {name.rstrip("_"): value for name in _OPTIONS if (value := getattr(asked, name)) is not None}
