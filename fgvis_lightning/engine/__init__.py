"""The engine of a sweep: LightningModule bases, the strategy for several devices, batch size and signals."""
