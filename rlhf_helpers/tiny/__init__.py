"""The embedded preset: a corpus, a tokenizer and a base model that need no download.

`grammar` judges the sentences; tools/build_tiny.py writes them with it, from a seed, and makes the files beside it.
"""
