"""The studies of train.py."""
