"""Labelled images, the subset of them that is scored, and what each model sees of them."""
