"""The libraries that people would use instead: their environments, and how they are installed."""
