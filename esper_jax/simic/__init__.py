"""Simic teaches Tamiyo: growth as an environment, reward and learners."""
