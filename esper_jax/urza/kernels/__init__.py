"""The kernels that come with the project, one per file."""
