"""The embedded preset: a corpus, a tokenizer and a base model that need no download.

`grammar` writes and judges the sentences; tools/build_tiny.py makes the files beside it from a seed.
"""
