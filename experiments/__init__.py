"""The studies: one file each, named as the option of the `experiment` group that runs it."""
