"""The commands that measure, each a module with ``main``, and their common code."""
