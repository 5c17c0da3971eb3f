"""Training: one recipe a paper, one loop for all of them."""

from segkit.training.loop import Run, train
from segkit.training.losses import label_distribution, segmentation_loss
from segkit.training.recipes import RECIPES, Recipe, recipe

__all__ = ["RECIPES", "Recipe", "Run", "label_distribution", "recipe", "segmentation_loss", "train"]
