"""The models: what a member is, how it is built, and where its weights come from."""

from netkin.zoo import xception as xception  # it registers gluon_xception65 with timm
