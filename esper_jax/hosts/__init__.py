"""Host networks with named slots; `make_host` builds one by name."""

from esper_jax.hosts.registry import host_names, make_host, slot_names

__all__ = ["host_names", "make_host", "slot_names"]
