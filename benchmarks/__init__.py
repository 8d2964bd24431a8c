"""Benchmarks of the service against FastAPI with hand-written SQL and against a usual FastAPI and ORM service."""
