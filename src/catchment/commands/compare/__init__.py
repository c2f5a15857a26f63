"""``catchment compare``: what a fine-tune gained, lost and kept."""
