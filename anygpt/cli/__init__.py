"""The command line: flags in, engine calls, files out."""
