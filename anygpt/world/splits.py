"""Held-out sets by construction: whether a thing is held out is a hash of its name, never a random draw."""

import hashlib


def stable_hash(key: str, salt: str) -> int:
    """A number in [0, 2**64) that depends on the arguments alone, in every process and version."""
    digest = hashlib.sha256(f"{salt}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def held_out(key: str, fraction: float, salt: str) -> bool:
    """True for about `fraction` of all keys, always the same ones for a given `salt`."""
    return stable_hash(key, salt) < fraction * 2**64
