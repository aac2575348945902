"""The embedded preset: a corpus, a tokenizer and a base model that need no download.

`grammar` writes and judges the sentences; `build` makes the files beside it from a seed.
"""
