"""Training: the small tokenizers (one shared loop, one recipe each) and the language model's stages."""
