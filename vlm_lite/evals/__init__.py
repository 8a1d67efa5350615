"""Scores that agree with the official tools, and probes that show whether a model looks."""
