"""Three towers: scores of pages, the pair that nobody trained, and what more towers cost."""
