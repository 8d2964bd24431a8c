"""The application for ASGI servers, made from the environment; a bad setting ends the process."""

from todo_api.main import app

__all__ = ["app"]
