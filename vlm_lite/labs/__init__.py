"""What turns a notebook into a lab: the checks behind its exercises."""
