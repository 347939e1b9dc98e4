"""What each layer of a trained network does, and what becomes of the network without it."""
