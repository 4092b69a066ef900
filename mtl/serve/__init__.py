"""A model as a server: the contracts of text-embeddings-inference and OpenAI, a queue by tokens, and a page.

``model`` is all that touches a model, ``queue`` computes rows of ids in turns, ``contracts`` reads what clients send,
``app`` answers, ``server`` keeps slow and silent clients away. It needs the extra ``serve``.
"""
