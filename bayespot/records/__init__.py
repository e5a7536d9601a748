"""Frozen records: the nouns of the library."""
