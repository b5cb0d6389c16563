"""The engine of a sweep: LightningModule bases, the strategy for many devices, batch size and signals."""
