"""Training: recipes, objectives and the one loop that serves both stages."""
