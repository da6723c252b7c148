"""A model is written anew as it is, recipe and card with it, and published by the hub's own client."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import manta
from manta.errors import ModelError, UsageError
from manta.families.phrases import FEATURES
from manta.families.restorer import Restorer, RestorerConfig, RestorerModel
from manta.hub import load, model_config, save_model
from manta.nets.grid import DicConfig

from ..families.conftest import make_ar, make_lm

RECIPE = {"data": "builtin:weather", "seed": 3}


def test_what_is_saved_anew_is_the_model_with_its_recipe_and_card(tmp_path):
    lm = make_lm()
    save_model(tmp_path / "first", lm, recipe=RECIPE, card="# mine\n")  # in half the bytes
    first = load(tmp_path / "first", device="cpu")
    assert manta.save_pretrained(first, tmp_path / "second") == tmp_path / "second"
    second = load(tmp_path / "second", device="cpu")
    mine, theirs = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (second.recipe, second.card) == (RECIPE, "# mine\n")
    assert second.write("the cat", num_steps=4) == first.write("the cat", num_steps=4)
    config = model_config(tmp_path / "second")
    assert (config["model_type"], config["architectures"]) == ("manta", ["MantaLanguageModel"])


def test_what_is_no_model_of_ours_is_refused(tmp_path):
    with pytest.raises(UsageError, match="received str"):
        manta.save_pretrained("e2e", tmp_path / "out")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match="no model of manta"):
        manta.save_pretrained(make_ar(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


class Hub:
    """What the hub's client was asked for, and the files that it was given."""

    def __init__(self) -> None:
        self.made: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self.commit: dict[str, Any] = {}
        self.token: Any = None
        self.fails: Exception | None = None

    def __call__(self, token: Any) -> "Hub":
        self.token = token
        return self

    def create_repo(self, name: str, **how: Any) -> Any:
        if self.fails:
            raise self.fails
        self.made.append((name, how))
        return SimpleNamespace(repo_id=f"me/{name}" if "/" not in name else name)

    def upload_folder(self, *, folder_path: Path, **how: Any) -> Any:
        self.files = {file.name: file.read_bytes() for file in folder_path.iterdir()}
        self.commit = how
        return SimpleNamespace(commit_url=f"commit of {how['repo_id']}")


@pytest.fixture
def hub(monkeypatch) -> Hub:
    import huggingface_hub

    found = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", found)
    return found


def test_a_card_tells_a_hub_what_a_model_of_photographs_does(hub):
    net = RestorerModel(RestorerConfig(tile=16, net=DicConfig(width=8, depths=(1, 1, 1, 1, 1))))
    manta.push_to_hub(Restorer(net, torch.zeros(5, FEATURES + 1)), "me/mended")
    assert "pipeline_tag: image-to-image\n" in hub.files["README.md"].decode()


def test_what_is_published_is_a_model_folder(hub, tmp_path):
    lm = make_ar()
    lm.card = "# mine\n"
    told = manta.push_to_hub(lm, "hf:little", private=True, token="secret", revision="draft", create_pr=True)
    assert told == "commit of me/little" and hub.token == "secret"
    assert hub.made == [("little", {"private": True, "exist_ok": True})]
    assert hub.commit == {
        "repo_id": "me/little",
        "revision": "draft",
        "create_pr": True,
        "commit_message": "Upload a model of manta",
    }
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: manta\npipeline_tag: text-generation\n---\n") and card.endswith(
        "# mine\n"
    )
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert load(tmp_path, device="cpu").write("the cat") == lm.write("the cat")
    again = load(tmp_path, device="cpu")
    manta.push_to_hub(again, "me/other")
    assert hub.files["README.md"].decode() == card  # its front matter is not put before it twice


def test_what_the_hub_refuses_is_one_line(hub):
    from huggingface_hub.errors import HFValidationError

    hub.fails = HFValidationError("Repo id must be in the form\nand so on")
    with pytest.raises(UsageError, match=r"named owner/name, received 'a b/c' \(Repo id must be in the form\)"):
        manta.push_to_hub(make_ar(), "a b/c")
    hub.fails = ConnectionError("no network")
    with pytest.raises(ModelError, match=r"me/x cannot be published \(no network\)"):
        manta.push_to_hub(make_ar(), "me/x")
    assert not hub.files


def test_a_revision_of_the_hub_is_asked_for(monkeypatch, tmp_path):
    import huggingface_hub

    lm, asked = make_ar(), []
    manta.save_pretrained(lm, tmp_path / "model")

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(tmp_path / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load("hf:me/little@v2", device="cpu").write("rain") == lm.write("rain")
    load("hf:me/little", device="cpu")
    assert asked == [("me/little", "v2"), ("me/little", None)]
