"""What is kept between runs, and who is at work on it."""
