"""Texts to vectors: tokenizing, batching, running."""
