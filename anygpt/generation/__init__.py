"""Generating ids with a language model, under a grammar, by decoding policies."""
