"""Conversion of weights from and to other programs' formats.

`rules` map the tensors of a file to our parameters and back; every mismatch is reported by name.
"""
