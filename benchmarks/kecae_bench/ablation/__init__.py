"""What each term of the training's loss does."""
