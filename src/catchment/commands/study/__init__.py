"""``catchment study``: a grid of checkpoints, tunings and tasks that survives a crash."""
