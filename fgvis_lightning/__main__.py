"""``python -m fgvis_lightning``, the same as the installed command ``fgvis``."""

from fgvis_lightning.cli import main

if __name__ == "__main__":
    main()
