"""What a person reads: the figures and the HTML page of a run."""
