"""What runs a sweep: the LightningModule base, the strategy for many devices, batch size and signals."""
