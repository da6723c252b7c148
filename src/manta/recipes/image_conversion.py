"""Conversions of image flows: attention between all patches becomes another operator."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from manta.errors import ConfigError, DataError, ModelError
from manta.families.image_flow import ImageFlow, matching
from manta.families.image_imitation import FieldImitation
from manta.families.image_model import ImageConfig, ImageModel
from manta.families.image_objective import ImageMatching
from manta.hub import load
from manta.image import ImageBatch, ImageExample, read_images, resized
from manta.image.corpus import NO_CLASS
from manta.recipes.conversion import (
    LOOKED_AT,
    MEASURED,
    ROWS,
    Cost,
    begin_as,
    check_measured,
    converted_blocks,
    costs,
    near_shares,
    new_operators,
    reach_of,
    told_near,
)
from manta.recipes.image_recipe import IMAGE_SIZES, ImageRecipe
from manta.recipes.origins import placed, refuse_quantised


def source_flow(recipe: ImageRecipe) -> ImageFlow:
    """The image flow that is to be converted.

    Raises:
        ModelError: the folder is none of such a model.
    """
    found = load(recipe.converted_from, device="cpu")
    if not isinstance(found, ImageFlow):
        raise ModelError(
            f"{recipe.converted_from} is no image flow (family {found.family}), and {recipe.data} are images"
        )
    refuse_quantised(found, recipe.converted_from)
    return found


def for_converted_images(recipe: ImageRecipe, tell: Callable[[str], None] = lambda line: None) -> ImageRecipe:
    """The recipe of a run that converts `recipe.converted_from`: that model's shape, size of images and channels.

    Args:
        recipe: as asked for.
        tell: takes the measurement by which `local` chooses.

    Raises:
        ModelError: the folder holds no image flow, or one without attention where it is to be converted.
        ConfigError: the recipe asks for another shape, for a block that is not there, or for an operator that a grid
            cannot use; or no block's attention stays near.
    """
    flow, config = source_flow(recipe), recipe.conversion
    if recipe.model != ImageConfig() or recipe.size != "auto":
        raise ConfigError("the model keeps its shape; leave model.* and size out")
    check_measured(config)
    height, width, channels = flow.codec.shape
    for name, own in {"height": height, "width": width, "channels": channels}.items():
        if getattr(recipe, name) not in (None, own):
            raise ConfigError(f"the model's images have {name}={own}; leave {name} out")
    trunk, shape = flow.trunk_of(flow.model), flow.model.config
    near: tuple[float, ...] = ()
    if config.layers == "local":
        reach = reach_of(config)
        near = near_shares(flow, task_of_flow(flow, recipe), held_out_images(recipe, flow, LOOKED_AT), reach)
        tell(told_near(near, reach))
    net = shape.net
    assert net.kind == "dit" and net.heads is not None and net.width is not None, "which has a trunk, and is built"
    operators, chosen = new_operators(config, trunk, net.mix, net.heads, near)
    shape = replace(shape, net=replace(net, operators=operators))
    try:
        with torch.device("meta"):
            ImageModel(shape)
    except ConfigError as error:
        raise ConfigError(f"{recipe.converted_from}: {error}") from None
    size = min(IMAGE_SIZES, key=lambda name: abs(IMAGE_SIZES[name].dit[0] - (net.width or 0)))
    return replace(
        recipe,
        size=size,
        height=height,
        width=width,
        channels=channels,
        model=shape,
        converted_from=placed(str(recipe.converted_from)),
        conversion=replace(config, layers=",".join(map(str, chosen)), near=near),
    )


def task_of_flow(flow: ImageFlow, recipe: ImageRecipe) -> ImageMatching:
    """What an image flow is taught."""
    return matching(flow.model.config, recipe.objective, {})


def held_out_images(recipe: ImageRecipe, flow: ImageFlow, num: int) -> list[ImageBatch]:
    """Batches of the development split, or of the training images where it is empty.

    Raises:
        DataError: there are none.
    """
    for split in ("dev", "train"):
        examples = read_images(recipe.data, split, None, channels=flow.codec.channels, skipped=lambda reason: None)
        if rows := list(islice(examples, num)):
            return [_batch(rows[begin : begin + ROWS], flow, recipe) for begin in range(0, len(rows), ROWS)]
    raise DataError(f"{recipe.data} has no images to measure on")


def _batch(rows: list[ImageExample], flow: ImageFlow, recipe: ImageRecipe) -> ImageBatch:
    codec = flow.codec
    numbers = {name: number for number, name in enumerate(codec.classes)}
    pixels = np.stack([resized(row.pixels, codec.shape[:2], recipe.fit) for row in rows])
    labels = [NO_CLASS if row.label is None else numbers.get(row.label, NO_CLASS) for row in rows]
    batch = ImageBatch(
        pixels=torch.from_numpy(pixels), label=torch.tensor(labels), index=torch.arange(len(rows), dtype=torch.int64)
    )
    return batch.to(flow.device)


def imitation(recipe: ImageRecipe, source: ImageFlow, *, outputs: float, states: float) -> FieldImitation:
    """What a converted net is taught."""
    frozen, blocks = source.model.requires_grad_(False), converted_blocks(recipe.conversion)
    task = task_of_flow(source, recipe)
    return FieldImitation(task, frozen, source.trunk_of, blocks, outputs=outputs, states=states)


def how_well_drawn(recipe: ImageRecipe, source: ImageFlow, net: ImageModel) -> list[Cost]:
    """What a conversion costs on held-out images: the source, the net right after it, and the net now.

    Args:
        recipe: of the run.
        source: the model that was converted.
        net: as trained.
    """
    torch.manual_seed(recipe.seed)
    fresh = ImageModel(net.config).to(source.device)
    begin_as(source, fresh, converted_blocks(recipe.conversion))
    nets = [("source", source.model), ("right after the conversion", fresh), ("after training", net)]
    task = imitation(recipe, source, outputs=1.0, states=1.0)
    return costs(nets, task, held_out_images(recipe, source, MEASURED), ("velocity",))
