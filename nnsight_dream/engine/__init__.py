"""What runs where the model is, and nothing else; everything in this folder travels to servers."""
