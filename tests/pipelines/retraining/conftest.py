"""The empty registry of the registry's own tests."""

from tests.registry.conftest import empty_database, home

__all__ = ["empty_database", "home"]
