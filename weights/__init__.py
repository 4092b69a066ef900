"""The files of pretrained models: where they come from, whether they are the right ones, what is in them."""
