"""Frozen classifiers: their weights, preprocessing and class names, and the logits they return."""
