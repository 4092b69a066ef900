"""Rows in and out: every file format that is read or written, outputs that can be resumed, corpora of many files."""
