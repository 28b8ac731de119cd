"""Encoders and decoders between media and discrete codes, one folder per method."""
