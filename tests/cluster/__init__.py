"""Tests on a real SLURM, which they bring up on this machine."""
