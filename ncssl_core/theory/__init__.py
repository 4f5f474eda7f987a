"""Linear models of self-supervised learning, exact and small: numpy and scipy only."""
