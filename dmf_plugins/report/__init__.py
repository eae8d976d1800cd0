"""Logs, figures and tables."""
