"""Training data: the published JSONL formats, tokenizing media into them, mixing and packing."""
