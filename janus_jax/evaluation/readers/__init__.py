"""Reads benchmarks as people have them on disk: official files, Hugging Face parquet, and VLMEvalKit's TSV files.

Every reader gives `Item`s: the same questions are the same items, whatever they were read from.
"""
