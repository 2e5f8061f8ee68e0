"""Weights from other programs' files, and ours in theirs.

`rules`: what the tensors of a file are in our parameters, applied and inverted with every problem named.
"""
