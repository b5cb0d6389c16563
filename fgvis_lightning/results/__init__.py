"""Explanations in memory and on disk, the results folder, its tables and figures."""
