"""The commands other than ``fit``, each a file with ``main``."""
