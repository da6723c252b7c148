"""A published model's one stage, by its configuration alone."""

from typing import Any

import torch

from manta.bench.planning.unread import Unread, bare, text_batch
from manta.errors import UsageError
from manta.recipes.parts import StageSpec
from manta.recipes.tune_parts import TuneParts
from manta.recipes.tune_recipe import described


def published(recipe: Any, device: torch.device) -> Unread:
    """The stage of a recipe that trains a published model on, whole.

    Args:
        recipe: as resolved.
        device: meta: no weights are read.

    Raises:
        UsageError: it trains adapters.
    """
    if recipe.lora.rank is not None:
        raise UsageError("adapters are not planned; leave --lora out for what the whole model would need")
    parts: Any = bare(TuneParts, recipe, device)
    parts.model, parts.adapters = described(recipe), None
    net, frame = parts.net.float(), parts.model.frame
    parts.model.bounded(recipe.longest)
    parts.modules["model"] = net
    spec = StageSpec("tune", 1.0, net, (net,), parts.objective, lambda: None)
    prompt = (recipe.longest - frame - 1) // 2
    text = recipe.longest - frame - 1 - prompt
    rows = max(1, recipe.batch_tokens // recipe.longest)
    batch = text_batch(rows * (prompt + text), prompt, text, parts.lm.tokenizer.vocab_size)
    notes = (f"rows of the longest, {recipe.longest} tokens", "half of each a prompt")
    return Unread(recipe, parts, [spec], lambda spec: batch, notes)
