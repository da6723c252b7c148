"""Smaller models that begin as a part of a larger one: some of its blocks, and some of their neurons."""

import json
from dataclasses import replace
from pathlib import Path

from manta.errors import ConfigError
from manta.families import FAMILIES
from manta.families.inheritance import Score, choose_blocks, choose_neurons, mean_loss, thinned
from manta.families.prompted import PromptedModel
from manta.hub.folder import LanguageModel
from manta.recipes.origins import larger_model, of_shape, placed
from manta.recipes.recipe import Recipe
from manta.recipes.text_conversion import task_of_model
from manta.runtime import atomic_write, make_generator
from manta.text import Corpus, Loader

INHERITED = "inheritance.json"
"""In a run folder: what was taken over, and what the loss was before anything was trained."""


def for_inherited(recipe: Recipe) -> Recipe:
    """The recipe of a run that begins as a part of `recipe.inherit`: that model's family, shape and limits.

    Of the shape, `depth` and `hidden` are for the recipe to say.

    Raises:
        ModelError: the folder holds no model of a family that is trained here.
        ConfigError: the recipe asks for another family or shape, or for more than the model has.
    """
    if recipe.taught_by is not None or recipe.drafter_of is not None or recipe.converted_from is not None:
        raise ConfigError("a model begins with one other; leave taught_by, drafter_of and converted_from out")
    lm = larger_model(recipe)
    row = FAMILIES[lm.family]
    if lm.family == "decoder":
        raise ConfigError(
            f"{recipe.inherit} is a published causal model, of which no part is taken; convert it, or "
            "inherit from a model that manta trains"
        )
    asked, own = getattr(recipe, row.shape), lm.model.config
    if replace(asked, depth=None, hidden=0) != type(asked)():
        raise ConfigError(f"of {row.shape}.* only depth and hidden can differ from the model's; leave the others out")
    if len(set(own.mix)) > 1:
        raise ConfigError("the model's blocks have several operators; inherit first, and convert what comes of it")
    depth, wide = asked.depth or own.depth, _hidden(lm)
    if depth > own.depth or asked.hidden > wide:
        raise ConfigError(
            f"the model has {own.depth} blocks of {wide} neurons; {row.shape}.depth={depth} and "
            f"{row.shape}.hidden={asked.hidden} should be no more"
        )
    hidden = asked.hidden or own.hidden
    shape = replace(own, depth=depth, hidden=hidden, operator=own.mix[0], operators=())
    if getattr(shape, "draft_horizon", 0):  # its words will be others
        shape = replace(shape, draft_horizon=0)
    return of_shape(recipe, shape, inherit=placed(str(recipe.inherit)))


def _hidden(lm: LanguageModel) -> int:
    """Neurons of a block's pointwise network."""
    return lm.trunk_of(lm.model).networks[0].hidden


def begin_as_part(recipe: Recipe, run: Path, source: LanguageModel, net: PromptedModel, corpus: Corpus) -> str:
    """Give a net the weights of a part of a larger one; returns what was taken over, in words.

    What was chosen, and the loss on training batches of the whole model, of its blocks that stay and of what is
    inherited, goes into the run folder.

    Args:
        recipe: of the run.
        run: its folder.
        source: the larger model.
        net: of the same shape, but for depth and neurons.
        corpus: the texts that blocks and neurons are judged by.
    """
    config, seed = recipe.inheritance, recipe.seed
    task, whole = task_of_model(source, recipe), source.model.requires_grad_(False)
    device = whole.embedding.weight.device

    def scores() -> Score:
        loader = Loader(corpus, batch_tokens=recipe.batch_tokens or 0, multiple=source.rate_of(whole), seed=seed)
        generator = make_generator(seed)
        return lambda judged: task(judged, next(loader).to(device), generator).total

    depth, hidden = net.config.depth, source.trunk_of(net).networks[0].hidden
    generator = make_generator(seed)
    blocks = choose_blocks(whole, source.trunk_of(whole), depth, config.layers, scores, config.batches, generator)
    shallow, neurons = thinned(whole, source.trunk_of, blocks, None), None
    if hidden < _hidden(source):
        trunk = source.trunk_of(shallow)
        neurons = choose_neurons(shallow, trunk, hidden, config.neurons, scores, config.mask_steps, generator)
    small = thinned(whole, source.trunk_of, blocks, neurons)
    weights = {name: value for name, value in small.state_dict().items() if not name.startswith("drafter.")}
    net.load_state_dict(weights)
    nets = {"whole": whole, "blocks": shallow, "inherited": net}
    losses = {name: mean_loss(each, scores, config.batches) for name, each in nets.items()}
    told = {"blocks": list(blocks), "neurons": hidden, "losses": losses}
    atomic_write(run / INHERITED, (json.dumps(told, indent=1) + "\n").encode())
    return inherited_words(run)


def inherited_words(run: Path) -> str:
    """What a run has inherited, in a sentence; empty where nothing."""
    if not (run / INHERITED).exists():
        return ""
    told = json.loads((run / INHERITED).read_bytes())
    blocks, losses = ", ".join(map(str, told["blocks"])), told["losses"]
    return (
        f"the blocks {blocks} with {told['neurons']} neurons each; loss on training texts before any training: "
        f"{losses['whole']:.3f} of the whole model, {losses['blocks']:.3f} with these blocks, "
        f"{losses['inherited']:.3f} as inherited"
    )
