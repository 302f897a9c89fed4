"""T against T', and what else was measured about the package."""
