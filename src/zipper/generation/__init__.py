"""Generation: prompt segments and an order of output modalities to tokens, cached and batched."""
