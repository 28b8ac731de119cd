"""SEED-2: images as 32 causal codes (Ge et al. 2023, "Making LLaMA SEE and Draw with SEED Tokenizer")."""
