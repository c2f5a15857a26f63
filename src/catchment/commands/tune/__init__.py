"""``catchment tune``: fine-tune a model, protected on request, and see what it cost."""
