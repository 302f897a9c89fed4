"""What the runs of T against T' say."""
