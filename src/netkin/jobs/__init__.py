"""Worker processes, the memory that they free, and progress."""
