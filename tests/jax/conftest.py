"""The tests of the JAX front end are for where JAX is installed."""

from importlib.util import find_spec

collect_ignore_glob = ["test_*.py"] if find_spec("jax") is None else []
