"""Taking a grown network home: weights, code, StableHLO, lineage."""
