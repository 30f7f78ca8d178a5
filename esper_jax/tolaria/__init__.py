"""Tolaria trains: the loop, its state, checkpoints and the safety governor."""
