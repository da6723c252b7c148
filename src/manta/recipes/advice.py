"""What a person should know of a run before it begins: a family that cannot do in time what is asked of it."""

from manta.families.asked import follows
from manta.recipes.recipe import Recipe, seconds
from manta.text import CorpusReport, task_of

ENOUGH = 4 * 3600.0
"""Seconds of one core from which nothing is said against a parallel family on prose: more than was measured."""
ELEMENTS = 5e7
"""The same in tokens of batches, for a run of steps."""


def advice(recipe: Recipe, report: CorpusReport, *, named: bool = False) -> tuple[str, ...]:
    """Lines of advice, mostly none.

    Texts without prompts are where a parallel family needs most training: in eight minutes of a core left to right has
    a MAUVE of 0.92 with human stories, and the parallel families, in as many calls as a text has words, have 0.03 to
    0.17 (`benchmarks/stories.py`).

    Args:
        recipe: as resolved.
        report: what became of the data.
        named: the data name tasks, and the model is not told them.
    """
    if named:
        return (
            "advice: these data name tasks, and this model is not told which text is of which; --family ar --tasks "
            "low_rank trains one that tells them apart",
        )
    parallel = follows(recipe.family, "num_steps")
    if not parallel or report.prompts or task_of(recipe.data) is not None:
        return ()
    if recipe.time_budget is not None:
        if seconds(recipe.time_budget) >= ENOUGH:
            return ()
    elif (recipe.num_steps or 0) * (recipe.batch_tokens or 0) >= ELEMENTS:
        return ()
    name = "a Manta-LM" if recipe.family == "manta" else "a masked model"
    return (
        f"advice: these texts have no prompts, and {name} writes no readable prose after so little training; "
        "--family ar is the one that first does",
    )
