"""Simic: growth as an environment in which a policy learns."""
