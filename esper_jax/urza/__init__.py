"""Urza keeps kernels, and what is known of them, in a local directory."""
