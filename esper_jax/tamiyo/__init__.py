"""Tamiyo decides: what each slot does next, at epoch boundaries."""
