"""Held-out sets by construction: whether a thing is held out is a hash of its name, never a random draw."""

import hashlib


def held_out(key: str, fraction: float, salt: str) -> bool:
    """True for about `fraction` of all keys, always the same ones for a given `salt`."""
    digest = hashlib.sha256(f"{salt}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
