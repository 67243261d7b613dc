"""What studies share: the command line, the config read into objects, the study's frame."""
