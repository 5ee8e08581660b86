"""`scripts/gpu_check`: what only a GPU can show, in one call that needs nothing from the network."""
