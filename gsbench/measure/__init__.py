"""Measuring: the worker process that runs, verifies and times implementations, and the session that drives it."""
