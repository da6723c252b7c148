"""Tensors that stand in shares are put together as they were, and shares that make no whole are refused."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from manta.errors import CheckpointError
from manta.runtime import digest_of_file
from manta.training import load_checkpoint
from manta.training.background import Stored, stems
from manta.training.checkpoint import STATE, _digest_of

WHOLE = torch.arange(35.0).view(7, 5)


def shares(folder, rows=(0, 4, 7)):
    """A matrix in two files, a number in one of them."""
    files = []
    for index, (begin, end) in enumerate(pairwise(rows)):
        pieces = {"model.weight": WHOLE[begin:end].clone(), **({"average.step": torch.tensor(3.0)} if index else {})}
        places = {name: {"saved_offsets": [begin, 0] if name == "model.weight" else []} for name in pieces}
        files.append(folder / f"shard-{index}.safetensors")
        save_file(pieces, files[-1], {"DCP_SHARDING_INFO": json.dumps(places)})
    return files


def test_shares_are_put_together(tmp_path):
    files = shares(tmp_path)
    assert stems(files) == ["model", "average"]
    model, average = Stored(files, "model"), Stored(files, "average")
    assert list(model) == ["weight"] and torch.equal(model["weight"], WHOLE)
    assert len(average) == 1 and average["step"] == 3 and average["step"].ndim == 0


def test_a_share_that_is_missing_or_says_no_place_is_refused(tmp_path):
    files = shares(tmp_path, rows=(0, 3, 7))
    with pytest.raises(ValueError, match="weight do not make a whole"):
        Stored(files[1:], "model")["weight"]
    save_file({"model.weight": WHOLE}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="where its pieces belong"):
        Stored([tmp_path / "other.safetensors"], "model")


def sealed(folder, files):
    body = {"step": 3, "shares": True, "files": {file.name: digest_of_file(file) for file in files}}
    (folder / STATE).write_text(json.dumps({**body, "digest": _digest_of(body)}))


def test_a_damaged_share_is_named(tmp_path):
    folder = tmp_path / "step-3"
    folder.mkdir()
    files = shares(folder)
    sealed(folder, files)
    tensors, state = load_checkpoint(folder)
    assert torch.equal(tensors["model"]["weight"], WHOLE) and state == {"step": 3}
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"shard-0\.safetensors is not as it was written"):
        load_checkpoint(folder)
