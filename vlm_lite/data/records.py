"""The official annotation files, read into plain Python with every field checked. No picture is touched.

An error names the file, the field (`annotations[3].answers[9].answer`), what stands there and what was expected.
"""

from vlm_lite.files import UserError, read_json

ANSWERS_PER_QUESTION = 10
_NAMES = {int: "a whole number of 0 or more", str: "text", list: "a list", dict: "an object"}


def read_caption_lists(annotations):
    """An official COCO captions file as ({image_id: file_name}, {image_id: its captions}), both in file order.

    An image without captions is in the first only; a caption without its image is an error.
    """
    data = read_json(annotations)
    captions, names = {}, {}
    for where, record in records(data, "annotations", annotations):
        image_id = field(record, "image_id", int, annotations, where)
        captions.setdefault(image_id, []).append(field(record, "caption", str, annotations, where))
    for where, record in records(data, "images", annotations):
        image_id = field(record, "id", int, annotations, where)
        if image_id in names:
            raise UserError(f"{annotations}: {where}.id is {image_id}, which an image before it has. Ids must differ.")
        names[image_id] = field(record, "file_name", str, annotations, where)
    orphans = sum(len(texts) for image_id, texts in captions.items() if image_id not in names)
    if orphans:
        example = next(image_id for image_id in captions if image_id not in names)
        raise UserError(f"{annotations}: {orphans} caption(s) belong to an image that `images` does not list, for "
                        f"example image_id {example}. Add it to `images`, or take its captions out.")
    return names, captions


def read_vqa_rows(questions, annotations, *, image_ids=None, complete=True):
    """Official VQA v2 question and annotation files as ({column: list}, data_subtype), in the order of the questions.

    Columns: question_id, image_id, question, question_type, answer_type, answer, answers (ten texts).
    complete: without it, data_subtype and all but the ids, the question and the ten answers may be missing (None).
    image_ids: keep the questions about these images only.
    """
    def optional(record, key, file, where=""):
        there = complete or not isinstance(record, dict) or record.get(key) is not None
        return field(record, key, str, file, where) if there else None

    asked, answered = read_json(questions), read_json(annotations)
    subtype, other = optional(asked, "data_subtype", questions), optional(answered, "data_subtype", annotations)
    if subtype != other and None not in (subtype, other):
        raise UserError(f"data_subtype is {subtype!r} in {questions} and {other!r} in {annotations}. "
                        "Pass the questions and the annotations of the same split.")
    notes = {}
    for where, record in records(answered, "annotations", annotations):
        question_id = field(record, "question_id", int, annotations, where)
        if question_id in notes:
            raise UserError(f"{annotations}: {where}.question_id is {question_id}, which an annotation before it has. "
                            "Ids must differ.")
        notes[question_id] = (where, record)
    rows = {name: [] for name in ("question_id", "image_id", "question", "question_type", "answer_type", "answer",
                                  "answers")}
    seen, lonely = set(), []
    for where, record in records(asked, "questions", questions):
        question_id = field(record, "question_id", int, questions, where)
        image_id = field(record, "image_id", int, questions, where)
        if question_id in seen:
            raise UserError(f"{questions}: {where}.question_id is {question_id}, which a question before it has. "
                            "Ids must differ.")
        seen.add(question_id)
        if image_ids is not None and image_id not in image_ids:
            continue
        if question_id not in notes:
            lonely.append(question_id)
            continue
        place, note = notes[question_id]
        if field(note, "image_id", int, annotations, place) != image_id:
            raise UserError(f"{annotations}: {place}.image_id is {note['image_id']}, but {questions} asks question "
                            f"{question_id} about image {image_id}. Pass two files that belong together.")
        values = (question_id, image_id, field(record, "question", str, questions, where),
                  optional(note, "question_type", annotations, place),
                  optional(note, "answer_type", annotations, place),
                  optional(note, "multiple_choice_answer", annotations, place),
                  _ten_answers(note, annotations, place))
        for column, value in zip(rows.values(), values, strict=True):
            column.append(value)
    if lonely:
        raise UserError(f"{annotations}: {len(lonely)} question(s) of {questions} have no annotation, for example "
                        f"question_id {lonely[0]}. Add their answers, or take the questions out.")
    refuse_empty(rows["question_id"], "questions", questions, image_ids)
    return rows, subtype


def field(record, key, kind, file, where=""):
    """`record[key]`, checked to be of `kind`. UserError names the file, the field and what stands there."""
    name = f"{where}.{key}" if where else key
    if not isinstance(record, dict):
        raise UserError(f"{file}: {where or 'the top level'} is {show(record)}; expected an object with the field "
                        f"`{key}`. Is this a file of another kind?")
    if key not in record:
        raise UserError(f"{file}: `{name}` is missing (found: {', '.join(map(repr, list(record)[:8])) or 'nothing'}). "
                        f"Expected {_NAMES[kind]}. Is this a file of another kind?")
    value = record[key]
    good = isinstance(value, kind) and not isinstance(value, bool)
    if good and kind is int:
        good = 0 <= value < 2**63
    if good and kind is str and not value.isascii():
        good = not any("\ud800" <= letter <= "\udfff" for letter in value)  # half of a character, not storable
    if not good:
        raise UserError(f"{file}: `{name}` is {show(value)}; expected {_NAMES[kind]}. Mend the file, or make or "
                        "download it again.")
    return value


def show(value):
    """`value` as it would be written, cut to 60 letters."""
    text = repr(value)
    return text[:57] + "..." if len(text) > 60 else text


def records(data, key, file):
    """(place, record) for each entry of the list `data[key]`."""
    return ((f"{key}[{index}]", record) for index, record in enumerate(field(data, key, list, file)))


def refuse_empty(rows, what, file, image_ids=None):
    """UserError when there are no rows."""
    if not rows:
        about = "" if image_ids is None else f" about the {len(image_ids)} image_ids asked for"
        raise UserError(f"{file} holds no {what}{about}: the data set is empty. Check the path"
                        f"{' and the ids' if about else ''}, or make or download the file again.")


def _ten_answers(note, file, where):
    answers = field(note, "answers", list, file, where)
    if len(answers) != ANSWERS_PER_QUESTION:
        raise UserError(f"{file}: `{where}.answers` has {len(answers)} entries; the official accuracy needs "
                        f"{ANSWERS_PER_QUESTION}. Give each question {ANSWERS_PER_QUESTION} answers.")
    texts = [entry.get("answer") if isinstance(entry, dict) else None for entry in answers]
    if all(isinstance(text, str) and text.isascii() for text in texts):  # nearly always, and ten times faster
        return texts
    return [field(entry, "answer", str, file, f"{where}.answers[{i}]") for i, entry in enumerate(answers)]
