"""The common format, the readers of the official files, and the Shapes world."""
