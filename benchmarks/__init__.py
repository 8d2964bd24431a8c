"""How fast the service is, beside FastAPI with SQL by hand and beside the usual FastAPI and ORM service."""
