"""Training of members on a dataset's training images."""
