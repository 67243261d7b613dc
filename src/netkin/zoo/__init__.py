"""The models: a member's definition, its network, preprocessing and weights."""

from netkin.zoo import xception as xception  # it registers gluon_xception65 with timm
