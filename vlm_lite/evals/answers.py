"""A model's answers on disk, and whether they are the answers to these questions: all of them, once each, no others."""

from collections import Counter

from vlm_lite.data.records import ID, field, read_lines, show
from vlm_lite.files import UserError


def read_results(path, id_field, text_field):
    """(id, text) of each entry of an official result file, a JSON list of objects (or JSON lines), as COCO and VQA have."""
    return [
        (field(record, id_field, ID, path, where), field(record, text_field, str, path, where))
        for where, record in read_lines(path)
    ]


def words(text):
    """A text as two files may have it: case and white space apart."""
    return " ".join(text.casefold().split())


PARTIAL = "Mend the file, or score only the part that both share: --partial (partial=True)."


def match(expected, given, *, file, against, name="id", partial=False, offer=PARTIAL):
    """({id: value} in the order of `expected`, {"scored", "missing", "unknown"}: counts) of the pairs `given`.

    Every expected id must be there, once, and no other. `partial` allows missing and unknown ids, as long as one is
    shared; an id that comes twice is never allowed. offer: the advice where only a part is there. UserError gives the
    count and an example of each fault.
    """
    given = list(given)
    values, wanted = dict(given), set(expected)
    missing = [key for key in expected if key not in values]
    unknown = [key for key in values if key not in wanted]
    twice = [k for k, n in Counter(key for key, _ in given).items() if n > 1]
    scored = len(wanted) - len(missing)
    counts = {"scored": scored, "missing": len(missing), "unknown": len(unknown)}
    faults = [
        f"{len(keys)} {name}(s) {what}, for example {show(keys[0])}"
        for keys, what in (
            (missing, "missing"),
            (twice, "there more than once"),
            (unknown, "unknown"),
        )
        if keys
    ]
    alike = {*map(str, missing)} & {*map(str, unknown)}
    if alike or twice or not scored or (faults and not partial):
        advice = (
            "Keep one answer each."
            if twice
            else "They are text in one file and numbers in the other: write them alike."
            if alike
            else "None is shared: is it of another split, or of another benchmark?"
            if not scored
            else offer
        )
        raise UserError(
            f"{file} does not answer {against}: {'; '.join(faults) or 'it is empty'}. Expected each of "
            f"{len(wanted)} {name}s once. {advice}"
        )
    return {key: values[key] for key in expected if key in values}, counts
