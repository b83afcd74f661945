"""What the command line does: one command a file, each with its `parser()` and its `run()`; pipelines/ has them as scripts."""
