"""Explanations in memory and on disk; the results folder with its tables and figures."""
