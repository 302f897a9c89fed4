"""Speed and measurement errors."""
