"""The mathematics: from token ids to hidden states, vectors, logits and losses. Imports torch and mtl.errors alone."""
