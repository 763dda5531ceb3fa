"""The tests of the JAX front end need JAX."""

import pytest

pytest.importorskip("jax")
