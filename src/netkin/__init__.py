"""How related are two image classifiers? Similarity by adversarial transfer."""

__version__ = "0.1.0"
