"""Frozen classifiers with their weights, preprocessing, class names and logits."""
