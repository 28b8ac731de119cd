"""The chat page: conversations with one model in a browser."""
