"""Instruction data of other layouts to the published instruction JSONL; a module for each layout."""
