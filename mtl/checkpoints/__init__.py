"""Pretrained models: from a name to verified files, from a folder to a model, and back."""
