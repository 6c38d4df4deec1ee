"""Soft labels of embeddings: a matrix product with the head, then a softmax."""
