"""How each small tokenizer is trained: one `TokenizerRecipe` a module."""
