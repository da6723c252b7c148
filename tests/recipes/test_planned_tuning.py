"""What a published model's training is planned to keep is what it keeps."""

import json

import pytest

from manta.bench.planning import counted
from manta.config import from_dict
from manta.errors import UsageError
from manta.recipes import TrainingRun
from manta.recipes.tune_recipe import TuneRecipe
from manta.training import train_stage

from ..hub.published import write
from ..hub.test_causal import published
from ..hub.test_foreign_writing import write_tokenizer


@pytest.mark.parametrize("kind", ["llada", "Dream", "llama"])
def test_a_published_model_is_counted_by_its_configuration(kind, tmp_path):
    base, file = tmp_path / f"base-{kind}", tmp_path / "pairs.jsonl"
    if kind == "llama":
        base.mkdir()
        published(base, "llama with grouped queries, tied")
    else:
        write(base, kind)
    write_tokenizer(base)
    file.write_text(
        "\n".join(json.dumps({"prompt": f"w{i} w{j}", "text": f"w{i}"}) for i in range(8) for j in range(9))
    )
    given = {"data": str(file), "begin_from": str(base), "batch_tokens": 100, "num_steps": 8, "max_length": 8}
    recipe = from_dict(TuneRecipe, {**given, "train": {"precision": "float32"}})
    run = TrainingRun(recipe, tmp_path / "run", device="cpu")
    stage = next(run.trials(4))
    next(train_stage(stage))
    for shard in base.glob("*.safetensors*"):
        shard.unlink()  # a plan reads no weights
    [found] = counted(recipe).stages
    kept = {name: sum(each.nbytes for each in tensors.values()) for name, tensors in stage.tensors().items()}
    assert sum(each.bytes for each in found.own) == sum(p.nbytes for p in stage.model.parameters())
    assert sum(each.bytes for each in found.moments) == kept["optimizer"]
    assert sum(each.bytes for each in found.average) == kept["average"]
    assert found.flops > 6 * (found.rows * 7) * sum(p.numel() for p in stage.model.parameters()) / 2


def test_adapters_are_not_planned(tmp_path):
    with pytest.raises(UsageError, match="adapters"):
        write(tmp_path / "base", "llada")
        write_tokenizer(tmp_path / "base")
        data = tmp_path / "pairs.jsonl"
        data.write_text(json.dumps({"prompt": "w1", "text": "w2"}))
        counted(from_dict(TuneRecipe, {"data": str(data), "begin_from": str(tmp_path / "base"), "lora": {"rank": 4}}))
