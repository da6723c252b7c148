"""Models written anew and published: what a model of ours is beside the folder that it was loaded from."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from manta.errors import ModelError, UsageError
from manta.families import DRAWING, FAMILIES
from manta.families.kept import KeptModel
from manta.hub.folder import save_model

FRONT_MATTER = "---\nlibrary_name: manta\npipeline_tag: {task}\n---\n\n"
"""What the hub reads of a card."""


def save_pretrained(lm: Any, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model folder, with the recipe and the card of the folder that the model came from.

    `manta.load` reads it, and so does `transformers`, once `manta.hub.auto.register()` was called.

    Args:
        lm: a model that manta trains or loads as its own.
        folder: new, empty, or of a model that this one replaces.
        dtype: precision of stored matrices; in float32 what is loaded is this model to the last bit.

    Returns:
        The folder.

    Raises:
        UsageError: it is no such model.
        ModelError: the folder holds files and no model of manta.
    """
    if not isinstance(lm, KeptModel):
        raise UsageError(f"a model of manta is saved, received {type(lm).__name__}; copy the folder of one of others")
    card = lm.card or f"# A {lm.family} model of manta\n"
    save_model(Path(folder), lm, recipe=dict(lm.recipe or {}), card=card, dtype=dtype)
    return Path(folder)


def push_to_hub(
    lm: Any,
    name: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "Upload a model of manta",
    dtype: torch.dtype = torch.float32,
) -> str:
    """Publish a model; `manta.load("hf:owner/name")` gives it back.

    Args:
        lm: as in `save_pretrained`.
        name: `owner/name`; the repository is made if it is not there.
        private: whether a new one is; None leaves it to the hub.
        token: of the hub; None takes the one that `hf auth login` has kept.
        revision: branch; None is the main one.
        create_pr: propose the files instead of writing them.
        message: of the commit.
        dtype: as in `save_pretrained`.

    Returns:
        The address of the commit.

    Raises:
        UsageError: it is no model of manta, or the name is none of a repository.
        ModelError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name = name.removeprefix("hf:")
    with TemporaryDirectory() as place:
        folder = save_pretrained(lm, Path(place) / "model", dtype=dtype)
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8")
        if not text.startswith("---\n"):
            task = {**FAMILIES, **DRAWING}[lm.family].task
            card.write_text(FRONT_MATTER.format(task=task) + text, encoding="utf-8")
        try:
            api = HfApi(token=token)
            repo = api.create_repo(name, private=private, exist_ok=True).repo_id
            done = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
            )
        except HFValidationError as error:
            raise UsageError(f"a repository is named owner/name, received {name[:80]!r} ({_first(error)})") from error
        except (HfHubHTTPError, OSError) as error:
            raise ModelError(
                f"{name} cannot be published ({_first(error)}); check the name, the token and the network"
            ) from error
    return str(getattr(done, "commit_url", done))


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
