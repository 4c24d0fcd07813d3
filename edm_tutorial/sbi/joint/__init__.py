"""One network for every conditional of parameters and observations."""
