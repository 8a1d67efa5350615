"""What is said and asked of a scene is true, names one thing, and is read by the tokenizer."""

import collections

import numpy as np

from vlm_lite.data.tokenizer import make_tokenizer, unknown_words
from vlm_lite.lessons import language, reading, world


def some_scenes(split, count=200):
    for index in range(count):
        rng = np.random.default_rng([3, index])
        yield world.sample_scene(rng, split), rng


def words_of(item):
    return {"digit"} if item.is_digit else {item.shape, item.colour, item.size}


def thing(phrase, scene):
    wanted = set(phrase.split()) - {"the", "shape"}
    (found,) = (i for i in scene.items if wanted <= words_of(i))
    return found


def truth(question, kind, scene):
    """The answer, worked out again from the items; None for what is not asked for here."""
    words = question.rstrip("?").split()
    told = set(words) & {*world.SHAPES, *world.COLOURS, *world.SIZES}
    if kind == "count":
        noun = {words[2], words[2].removesuffix("s"), words[2].removesuffix("es")}
        return str(sum(words[2] == "shapes" or bool(noun & words_of(i)) for i in scene.shapes))
    if kind == "existence" and "digit" not in words:
        return "yes" if any(told <= words_of(i) for i in scene.shapes) else "no"
    if kind == "colour":
        return " ".join(i.colour for i in scene.shapes if told <= words_of(i))
    if kind == "relation":
        relation = next(r for r in language.PAIRS if f" {r} " in question)
        one, other = (thing(part, scene) for part in question[3:-1].split(f" {relation} "))
        axis = {
            "left of": one.col < other.col,
            "right of": one.col > other.col,
            "above": one.row < other.row,
            "below": one.row > other.row,
        }
        return "yes" if axis[relation] else "no"


def test_every_answer_is_true_of_its_scene():
    for scene, rng in some_scenes("train", 150):
        for question, answer, kind in language.questions(scene, rng):
            assert truth(question, kind, scene) in (answer, None), (question, scene)


def test_descriptions_name_everything_in_every_wording():
    for scene, rng in some_scenes("train", 100):
        for text in (reading.describe(scene), reading.describe(scene, rng)):
            for item in scene.items:
                wanted = {str(item.value)} if item.is_digit else words_of(item)
                assert all(word in text for word in (*wanted, language.ROWS[item.row])), text


def test_a_reference_fits_one_thing_and_hides_what_is_asked_for():
    hidden_words = {"colour": world.COLOURS, "shape": world.SHAPES, "size": world.SIZES}
    for scene, _ in some_scenes("train", 100):
        for item in scene.shapes:
            for key, words in hidden_words.items():
                for phrase in language.references(scene, item, hidden=(key,)):
                    assert thing(phrase, scene) is item and not set(phrase.split()) & set(words)


def test_a_relation_is_yes_one_way_and_no_both_ways_in_the_same_column():
    star, heart = (
        world.Item(s, "red", "large", row=k, col=1) for k, s in enumerate(("star", "heart"))
    )
    assert language.compare(star, heart, "above") and not language.compare(heart, star, "above")
    assert not any(language.compare(star, heart, r) for r in ("left of", "right of"))


def test_the_right_letter_stands_before_the_right_option():
    for scene, rng in some_scenes("train", 40):
        for question, answer, kind in language.questions(scene, rng):
            prompt, letter = reading.with_options(question, answer, kind, rng)
            options = prompt.removeprefix(reading.short_prompt(question)[: -len("? answer:")])
            assert f"{letter} {answer} " in options, prompt


def test_one_document_in_eight_has_no_scene_and_asks_about_several():
    drawn = collections.Counter()
    for index in range(400):
        seen = []

        def make(rng, seen=seen):
            seen.append(world.sample_scene(rng))
            return seen[-1]

        text, talk = reading.document(make, np.random.default_rng([6, index]), exchanges=3)
        assert len(talk) == 3 and len(seen) == (1 if text else 3)
        drawn[bool(text)] += 1
    assert 0.07 < drawn[False] / 400 < 0.18


def test_no_text_of_the_world_has_a_word_the_tokenizer_does_not_know():
    tokenizer = make_tokenizer()
    for index in range(150):
        rng = np.random.default_rng([4, index])
        description, exchanges = reading.document(world.sample_scene, rng)
        text = " ".join([description, *(f"{p} {a}" for p, a in exchanges)])
        assert not unknown_words(tokenizer, text), text


def test_an_unknown_word_is_reported_and_option_letters_differ_from_the_article():
    tokenizer = make_tokenizer()
    assert unknown_words(tokenizer, "What colour is the Zeppelin?") == ["Zeppelin"]
    ids = tokenizer("a A. B.", add_special_tokens=False)["input_ids"]
    assert len(set(ids)) == 3 and tokenizer.unk_token_id not in ids
    assert tokenizer.eos_token_id == 5 and tokenizer.pad_token_id == 0
