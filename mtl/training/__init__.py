"""Recipes to trained models: data, schedule, freezing, loop, checkpoints, metrics. Imports all but the command line."""
