"""How text and images align: the experiments of arXiv 2601.08017 and 2509.20751."""
