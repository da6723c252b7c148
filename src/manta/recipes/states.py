"""The kinds of state that a run may train a model of; `STATES` is the table of them.

A newcomer is a package beside `text/` and `image/` that reads its data, a recipe, its `Parts`, and a row here; its
model has a row of `DRAWING` (`families`), and its verbs one of `VERBS_OF` (`cli/writing.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from manta.errors import ConfigError
from manta.recipes.parts import Parts
from manta.recipes.unused import refuse_unread, set_by_hand


@dataclass(frozen=True, kw_only=True)
class State:
    """What is known of a kind of state before any of it is loaded."""

    words: str
    """What a model of it makes, in the plural."""
    recipe: str
    """Its recipe, as `module:class`."""
    use: str
    """A line that says how a finished model is used, with {out} for its folder."""
    parts: str
    """What a run has to know of it, a `Parts`, as `module:class`."""
    data: str | None = None
    """Tells by the name of data whether they are of it, as `module:function`; None: no name tells."""

    @property
    def recipe_class(self) -> type[Any]:
        """The dataclass of its recipe."""
        return _named(self.recipe)

    def load(self) -> type[Parts]:
        """Import its parts."""
        return _named(self.parts)


STATES: Final[Mapping[str, State]] = {
    "text": State(
        words="texts",
        use="write with it: manta generate {out} --prompt '…'",
        recipe="manta.recipes.recipe:Recipe",
        parts="manta.recipes.stages:TextParts",
    ),
    "tuned": State(
        words="texts",
        use="write with it: manta generate {out} --prompt '…'",
        recipe="manta.recipes.tune_recipe:TuneRecipe",
        parts="manta.recipes.tune_parts:TuneParts",
    ),
    "photo": State(
        words="restored photographs",
        use="restore with it: manta restore {out} photo.jpg --instruction 'take the rain away' --out clean.png",
        recipe="manta.recipes.restore_recipe:RestoreRecipe",
        parts="manta.recipes.restore_parts:RestoreParts",
        data="manta.image.photos:is_photos",
    ),
    "image": State(
        words="images",
        use="draw with it: manta generate {out} --num-samples 16 --out grid.png",
        recipe="manta.recipes.image_recipe:ImageRecipe",
        parts="manta.recipes.image_parts:ImageParts",
        data="manta.image.sources:is_images",
    ),
    "joint": State(
        words="images with captions",
        use="draw with it: manta generate {out} --caption '…' --out grid.png; describe: --describe photo.png",
        recipe="manta.recipes.joint_recipe:JointRecipe",
        parts="manta.recipes.joint_parts:JointParts",
    ),
}
"""From a state's name to its row; of those whose `data` know a name, the first has it."""


def state_of(data: str, family: str | None = None, begin_from: str | None = None) -> str:
    """Of which kind some data are, a key of `STATES`, by their name alone, or the model that is to learn from them.

    Args:
        data: their name.
        family: of the model, where it is named.
        begin_from: a model to go on with: texts are `tuned` where others have published it.

    Raises:
        ModelError: there is no such model.
    """
    if family == "joint":
        return "joint"
    for name, state in STATES.items():
        if state.data is not None and _named(state.data)(data):
            return name
    if begin_from is None:
        return "text"
    from manta.hub import published_kind

    return "text" if published_kind(begin_from) is None else "tuned"


def recipe_class(state: Any) -> type[Any]:
    """The recipe of a kind of state.

    Raises:
        ConfigError: there is no such state.
    """
    if not isinstance(state, str) or state not in STATES:
        raise ConfigError(f"state should be one of {', '.join(STATES)}, received {str(state)[:80]!r}")
    return STATES[state].recipe_class


def resolved(recipe: Any, tell: Callable[[str], None] = lambda line: None) -> Any:
    """A recipe with all that follows from it.

    Args:
        recipe: of any state, as asked for.
        tell: takes what is measured on the way.

    Raises:
        ConfigError: what is asked for does not fit together, or the run would not read it.
    """
    found = STATES[recipe.state].load().resolved(recipe, tell)
    refuse_unread(found, set_by_hand(recipe, found))
    return found


def _named(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)
