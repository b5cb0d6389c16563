"""``python train.py fit --config configs/quickstart.yaml``, the same as the installed command ``fgvis``."""

from fgvis_lightning.cli import main

if __name__ == "__main__":
    main()
