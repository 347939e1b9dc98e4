"""What a run will cost, before anything is allocated: parameters, memory, FLOPs, tokens, time, money and loss."""
