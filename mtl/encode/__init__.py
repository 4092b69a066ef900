"""Texts to vectors: tokenizing, batching, running, reading and writing. Imports mtl.errors, mtl.model and weights."""
