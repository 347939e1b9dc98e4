"""Parts of a network: norms, residual schemes, attention, short convolutions, Canon layers, MLPs, positions, init."""
