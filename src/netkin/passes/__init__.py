"""The passes over a zoo: clean predictions, crafting, transfer."""
