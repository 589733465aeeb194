"""``Jobs`` by the name that the tests here know it by; the fixture ``jobs`` is everybody's."""

from tests.processes import Jobs

__all__ = ["Jobs"]
