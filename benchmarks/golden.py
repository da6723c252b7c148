"""Texts of the models that ship, token by token, in every way of writing: what a refactor must reproduce.

python benchmarks/golden.py [NAME …]      # writes tests/golden/NAME.json anew; of all models without a name

Sums of floating point numbers depend on the machine, so the file keeps a fingerprint of some products beside the
texts. `tests/families/test_golden.py` asks for equal tokens where the fingerprint is the same, and elsewhere for a
large share of them. Whoever writes the file anew changes what the model writes, and says why.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from manta.families.events import GenerateOptions, Request
from manta.families.manta_lm import MantaLM
from manta.hub import LanguageModel, load

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden"
PROMPTS = (
    "name[Blue Spice], eatType[coffee shop], area[city centre]",
    "name[Alimentum], food[Indian], priceRange[less than £20], area[riverside], familyFriendly[no]",
    "name[The Eagle], eatType[coffee shop], food[Japanese], priceRange[cheap], customer rating[5 out of 5]",
    "name[Zizzi], eatType[pub], area[riverside], near[Burger King]",
    "name[The Punter], food[English], priceRange[high], area[city centre], near[Raja Indian Cuisine]",
    "name[Green Man], food[Fast food], familyFriendly[yes]",
    "name[Cotto], eatType[restaurant], customer rating[average], area[riverside], near[The Portland Arms]",
    "name[Loch Fyne], food[French], familyFriendly[yes]",
    "name[Wildwood], eatType[restaurant], food[Italian], area[riverside], near[Raja Indian Cuisine]",
    "",
)
"""Meaning representations of E2E, and none."""
INFILL = "The ___ is a ___{6} near the river."
STORY = "once upon a time, there was a ___{4} who liked to ___. one day___{20}"
MANTA: dict[str, dict[str, Any]] = {
    **{f"diverse {n}": {"num_steps": n, "fluency": 0.0} for n in (1, 2, 4, 8, 16)},
    **{f"drawn {n}": {"num_steps": n} for n in (1, 4)},
    "drawn warm": {"num_steps": 6, "temperature": 0.7, "fluency": 0.5},
    **{f"consensus {n}": {"num_steps": n, "style": "consensus", "fluency": 0.0} for n in (1, 4, 8)},
    **{f"fluent {n}": {"num_steps": n, "style": "consensus"} for n in (1, 4, 8)},
    "heun": {"num_steps": 9, "solver": "heun"},
    "renoise": {"num_steps": 8, "solver": "renoise"},
    "guided": {"num_steps": 9, "guidance_scale": 1.5},
    "guided consensus": {"num_steps": 8, "guidance_scale": 2.0, "style": "consensus", "fluency": 0.0},
    "rounds": {"num_steps": 12, "rounds": 2, "flow_steps": 3},
    "no plan": {"num_steps": 6, "flow_steps": 0},
    "a short plan": {"num_steps": 8, "flow_steps": 2},
    "warm": {"num_steps": 8, "temperature": 0.7},
    "hot consensus": {"num_steps": 8, "temperature": 1.0, "style": "consensus"},
    "quiet": {"num_steps": 8, "noise_scale": 0.3},
    "escape": {"num_steps": 8, "escape_scale": 1.0},
    "infill": {"num_steps": 8},
    "infill consensus": {"num_steps": 5, "style": "consensus", "fluency": 0.0},
    "infill fluent": {"num_steps": 5, "style": "consensus"},
}
ALIGNED: dict[str, dict[str, Any]] = {
    **{f"{n} calls": {"num_steps": n, "fluency": 0.0} for n in (1, 2, 4, 8)},
    **{f"fluent {n}": {"num_steps": n} for n in (1, 2, 4)},
    "warm": {"num_steps": 4, "temperature": 0.7},
    "likeliest": {"num_steps": 3, "choose": 4, "choose_by": "likelihood"},
    "least risk": {"num_steps": 2, "choose": 4},
    "sequential": {"decoder": "sequential"},
    "verified": {"decoder": "verified", "temperature": 1.0},
    "infill": {"num_steps": 4, "fluency": 0.0},
    "infill fluent": {"num_steps": 4},
    "infill left to right": {"decoder": "sequential"},
    "infill drawn": {"decoder": "sequential", "temperature": 1.0},
}
STORIES: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 40},
    "drawn": {"temperature": 1.0, "max_tokens": 60},
    "long": {"temperature": 0.7, "max_tokens": 300},
    "infill": {},
    "infill drawn": {"temperature": 1.0, "top_p": 0.9},
}
WAYS = {"e2e": MANTA, "e2e-aligned": ALIGNED, "stories": STORIES}
"""Of each model that ships: options by name; those called infill fill `INFILL`."""


def fingerprint() -> str:
    """Names how this machine adds: a hash of products of matrices as wide as the model, of few and many rows."""
    generator, digest = torch.Generator().manual_seed(0), hashlib.sha256()
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 10, 120, 1200):
            left = torch.randn(rows, 256, generator=generator).to(dtype)
            right = torch.randn(256, 512, generator=generator).to(dtype)
            digest.update((left @ right).softmax(-1).float().numpy().tobytes())
    return digest.hexdigest()[:16]


def written(lm: LanguageModel, model: str, way: str) -> list[list[int]]:
    """Tokens of the texts of all prompts, written in one way."""
    infill = INFILL if way.startswith("infill") else None
    prompts = [None] * 4 if lm.prompted is False else [prompt or None for prompt in PROMPTS]
    infill = STORY if infill and lm.prompted is False else infill
    requests = [Request(prompt=prompt, infill=infill, seed=seed) for seed, prompt in enumerate(prompts)]
    if isinstance(lm, MantaLM):
        lm.repetition = torch.nn.functional.normalize(torch.arange(1.0, 1 + lm.model.space.channels), dim=0)
    done = [event for event in lm.generate(requests, GenerateOptions(**WAYS[model][way])) if event.kind == "done"]
    return [list(event.tokens) for event in sorted(done, key=lambda event: event.index)]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for model in sys.argv[1:] or WAYS:
        lm: Any = load(f"builtin:{model}", device="cpu")
        texts = {way: written(lm, model, way) for way in WAYS[model]}
        rows = ",\n".join(f" {json.dumps(way)}: {json.dumps(tokens)}" for way, tokens in texts.items())
        (FOLDER / f"{model}.json").write_text(f'{{"fingerprint": "{fingerprint()}",\n"texts": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    main()
