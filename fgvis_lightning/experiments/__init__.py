"""The commands beside ``fit``: each a file with ``main``."""
