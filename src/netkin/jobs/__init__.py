"""Worker processes, what they do to a process, and progress."""
