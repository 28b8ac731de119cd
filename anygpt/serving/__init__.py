"""The HTTP server: OpenAI's wire format in front of one model."""
