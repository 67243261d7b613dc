"""What the similarities mean."""
