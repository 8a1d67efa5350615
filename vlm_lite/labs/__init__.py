"""What turns a notebook into a lab: the checks behind its exercises, the student's copy, and the grader."""

VERDICT = "application/vnd.vlm-lite.verdict+json"  # the kind of output by which the grader finds a check's verdict
