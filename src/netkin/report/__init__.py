"""The figures and the HTML page of a run, and the text of its numbers."""
