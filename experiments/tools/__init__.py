"""Commands around a run: craft in parts, plan its cost, manage the store."""
