"""The dashboard: pages that show and steer batches in a browser, as a command and as an ASGI application.

``app.mount("/jobs", dashboard("jobs.db"))`` adds it to a program; ``asyncrunner dashboard`` serves it alone.
"""

from importlib.util import find_spec

if find_spec("starlette") is None or find_spec("jinja2") is None:
    raise ImportError('the dashboard needs starlette and jinja2: pip install "asyncrunner[dashboard]"')

from asyncrunner.dashboard.access import Access
from asyncrunner.dashboard.app import Dashboard, dashboard

__all__ = ["Access", "Dashboard", "dashboard"]
