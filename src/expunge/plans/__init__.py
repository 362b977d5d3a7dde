"""Plans: a grid of methods, concepts and seeds as a TOML file; read, checked whole, and expanded into jobs."""
