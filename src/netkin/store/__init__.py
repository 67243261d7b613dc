"""Results that are kept between runs, and the locks of processes that work on them."""
