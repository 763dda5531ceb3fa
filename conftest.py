"""The blocks of the README and of the site's pages are tests."""

from tests.pages import collect as pytest_collect_file

__all__ = ["pytest_collect_file"]
