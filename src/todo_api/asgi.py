"""The application for ASGI servers, created from the environment; an invalid setting ends the process."""

from todo_api.main import app

__all__ = ["app"]
