"""Recipes: from data to a trained model, stage by stage."""

from manta.recipes.recipe import Recipe, resolve
from manta.recipes.run import TrainingRun
from manta.recipes.shortcut import train

__all__ = ["Recipe", "TrainingRun", "resolve", "train"]
