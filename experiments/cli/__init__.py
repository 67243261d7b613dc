"""Shared by all studies: the command line, the config read into objects, a study's frame."""
