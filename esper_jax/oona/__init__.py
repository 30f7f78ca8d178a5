"""Oona carries events between the parts of a run and to whoever watches."""
