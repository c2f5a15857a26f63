"""``catchment scan``: how far a model can move before it loses what it can do."""
