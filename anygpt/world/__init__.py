"""The synthetic world: pictures, speech and music made by rule, with a seed, for training the shipped model."""
