"""Data sets on disk, their download, the order of batches, augmentation."""
