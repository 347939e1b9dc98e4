"""Research variants, one folder each; imported as `lit_small_lm.plugins.<name>`."""
