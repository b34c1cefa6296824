"""The run configuration: one complete, frozen, validated value made from a recipe file and overrides.

recipe = load_recipe("recipes/loveda.yaml", ["train.epochs=10", "model.stages=2"])
"""

from pipeline.config.base import Section
from pipeline.config.recipe import Recipe, apply_overrides, load_recipe, parse_recipe, recipe_names
from pipeline.config.yaml_text import read_yaml

__all__ = [
    "Recipe",
    "Section",
    "apply_overrides",
    "load_recipe",
    "parse_recipe",
    "read_yaml",
    "recipe_names",
]
