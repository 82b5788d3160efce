"""Training: LightningModules, callbacks, the run folder. Networks themselves know nothing of Lightning."""
