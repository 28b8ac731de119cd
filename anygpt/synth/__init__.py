"""Instruction data: conversations from writers, their media from generators, both plug-ins, tokenized to JSONL."""
