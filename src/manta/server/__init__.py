"""Models behind HTTP: a completion endpoint, infilling and editing, streams with drafts, and a page."""

from manta.server.app import create_app
from manta.server.settings import ServeSettings, check_settings

__all__ = ["ServeSettings", "check_settings", "create_app"]
