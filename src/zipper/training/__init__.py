"""Training: LightningModules, LightningDataModule, callbacks, runs. The networks do not depend on
Lightning."""
