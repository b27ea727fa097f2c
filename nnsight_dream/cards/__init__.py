"""Feature cards: what a feature looks like, where it fires, what judges say."""
