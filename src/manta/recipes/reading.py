"""The images that a run reads, whatever it learns from them: what they are, and what of them is left out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manta.errors import DataError
from manta.image import ImageExample, read_images
from manta.image.sources import fingerprint
from manta.recipes.budget import Watch
from manta.recipes.runfolder import DATA, RunFolder
from manta.runtime import read_json

MOST_TOLD = 5
"""Files that cannot be read of which a person is told by name."""


class Reading:
    """The images of a recipe, known again by their content.

    Args:
        recipe: says which split, and how many.
        name: of the images.
        folder: of the run; before what it keeps of them is written over, other images are refused.
        watch: is told of files that are left out.

    Raises:
        CheckpointError: the folder has been begun with other images.
    """

    def __init__(self, recipe: Any, name: str, folder: Path, watch: Watch) -> None:
        self.recipe, self.name, self.watch = recipe, name, watch
        self.source = fingerprint(name, recipe.split, recipe.num_examples)
        if (folder / DATA).is_file():
            stored = read_json(folder / DATA)
            found = stored if isinstance(stored, dict) else {}
            RunFolder.refuse_other_data(found, {"source": self.source}, recipe.data)
        self.skipped: list[str] = []
        """Files that cannot be read, with the reason."""

    def examples(self, channels: int | None) -> Iterator[ImageExample]:
        """All of them, with so many channels."""
        recipe = self.recipe
        return read_images(self.name, recipe.split, recipe.num_examples, channels=channels, skipped=self._leave_out)

    def first(self, channels: int | None) -> ImageExample:
        """The first one.

        Raises:
            DataError: there is none.
        """
        found = next(self.examples(channels), None)
        self.skipped.clear()
        if found is None:
            raise DataError(f"{self.recipe.data} has no images to train on")
        return found

    def _leave_out(self, reason: str) -> None:
        self.skipped.append(reason)
        if len(self.skipped) <= MOST_TOLD:
            self.watch.tell(f"left out: {reason}")
