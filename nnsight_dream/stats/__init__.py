"""Similarity of representations, predictivity, intervals, folds. Plain matrices in, numbers out."""
