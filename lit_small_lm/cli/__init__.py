"""The command line: fit, validate and test on LightningCLI, the other commands beside it."""
