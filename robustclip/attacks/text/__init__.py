"""Attacks on class prompts: candidate source x scorer x search."""
