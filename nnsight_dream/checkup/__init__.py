"""What `nnsight-dream check MODEL` finds out about a model: sections that pass, fail or are unsure, and one page."""
