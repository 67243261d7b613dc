"""The models: a member's definition, its network, preprocessing and weights."""
