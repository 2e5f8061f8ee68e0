"""Data sets of TensorFlow Datasets, read and written without TensorFlow."""
