"""How fast, how right and how precise netkin is: not about models."""
