"""A training in one call of Python."""

from pathlib import Path
from typing import Any

from manta.config import from_dict, to_dict
from manta.errors import UsageError
from manta.recipes.run import TrainingRun
from manta.recipes.runfolder import refuse_changes, stored_recipe
from manta.recipes.states import recipe_class, resolved, state_of
from manta.training import show_progress


def train(
    data: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: bool | None = None,
    **recipe: Any,
) -> Any:
    """Train a model and return it, ready to write or to draw.

        lm = manta.train("mine.jsonl", "runs/mine", time_budget="30m")
        print(lm.write("what it should answer to"))

    Args:
        data: a file, or a name of data; see `Recipe.data` and, for images, `ImageRecipe.data`.
        out: the run folder; the model folder is `out/model`.
        resume: continue the run of that folder.
        device: see `resolve_device`.
        progress: show how it goes, on stderr: True does, False is quiet; None shows it on a terminal and in a notebook.
        recipe: fields of `Recipe`, for images of `ImageRecipe`, e.g. `time_budget="3m"`, `size="tiny"`; where
            `begin_from` is a published model, of `TuneRecipe`.

    Returns:
        The model, of the family that the recipe names: `write` gives texts, `draw` images, `generate` events.

    Raises:
        UsageError: data or folder are no path or name, the folder holds a run and `resume` is not set, or a run that is
            to be continued has another recipe than is given (more of a time budget it takes).
        ConfigError: for an unknown or ill-typed field.
        DataError: for data that cannot be read.
        CheckpointError: there is nothing to resume.
        TrainingError: when the loss is no longer finite.
    """
    for name, value in (("data", data), ("out", out)):
        if not isinstance(value, str | Path) or not str(value):
            raise UsageError(f"{name} should be a path or a name, received {value!r} ({type(value).__name__})")
    begun = recipe.get("begin_from")
    kind = recipe_class(recipe.get("state") or state_of(str(data), recipe.get("family"), begun and str(begun)))
    asked = from_dict(kind, {"data": str(data), **recipe})
    more = asked.time_budget if resume else None
    if resume:
        own = stored_recipe(Path(out))
        given = {**recipe, "data": asked.data}
        if own.time_budget is not None:  # more of it is no change of the run
            given["time_budget"] = own.time_budget
        changed = from_dict(type(own), {**to_dict(own), **given})
        refuse_changes(Path(out), changed, resolved(from_dict(kind, given)), "resume")
    run = TrainingRun(asked, out, resume=resume, device=device, time_budget=more)
    show_progress(run.events(), progress)
    return run.model
