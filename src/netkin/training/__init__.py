"""Training members on a dataset's own training images."""
