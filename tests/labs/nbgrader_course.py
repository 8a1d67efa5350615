"""nbgrader's own assignment and marking, run by the Python of its environment: nbgrader_course.py COURSE ANSWERS.

COURSE/source/labs has the notebooks, all of which nbgrader releases. ANSWERS is a JSON file {notebook: {grade_id:
source}} of what a student puts into the copies that are handed in and marked. Prints {notebook: {grade_id: [points, of]}}
as the last line.
"""

import json
import os
import sys
from pathlib import Path

os.environ["PATH"] = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ["PATH"]]
)  # nbgrader calls alembic

from nbgrader.apps.api import NbGraderAPI  # noqa: E402
from traitlets.config import Config  # noqa: E402

course, answers = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
config = Config()
config.CourseDirectory.root = str(course)
config.Execute.timeout = 900
api = NbGraderAPI(config=config)


def done(result):
    if not result["success"]:
        sys.exit(f"{result.get('error')}\n{result.get('log')}")


done(api.generate_assignment("labs"))
for name in answers:
    released = course / "release" / "labs" / f"{name}.ipynb"
    notebook = json.loads(released.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        grade_id = cell["metadata"].get("nbgrader", {}).get("grade_id")
        cell["source"] = answers[name].get(grade_id, cell["source"])
    handed_in = course / "submitted" / "ada" / "labs" / released.name
    handed_in.parent.mkdir(parents=True, exist_ok=True)
    handed_in.write_text(json.dumps(notebook), encoding="utf-8")
if answers:
    done(api.autograde("labs", "ada"))
with api.gradebook as book:
    print(
        json.dumps(
            {
                name: {
                    grade.name: [grade.auto_score, grade.max_score]
                    for grade in book.find_submission_notebook(name, "labs", "ada").grades
                }
                for name in answers
            }
        )
    )
