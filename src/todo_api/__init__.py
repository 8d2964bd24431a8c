"""Todo API: personal task lists over HTTP, on PostgreSQL."""
