"""From turns and tasks to ids, the same way for training and for use."""
