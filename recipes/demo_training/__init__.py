"""How the bundled model, its judge and its pictures are made. Run `recipes/train_demo.py`."""
