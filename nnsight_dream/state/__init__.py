"""What a program set before: torch's modes, nnsight's import, a model's weights, edits and hooks."""
