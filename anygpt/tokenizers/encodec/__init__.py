"""Encodec: general audio codes, for music and sound effects."""
