"""Fixtures that several files of these tests share."""

from .agent_desk import desk, open_desk

__all__ = ["desk", "open_desk"]
