"""Language models: prompt and steps planned together, run with a cache that stays in its engine."""
