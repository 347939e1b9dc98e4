"""Training: the LightningModules, scoring, optimizers and callbacks."""
