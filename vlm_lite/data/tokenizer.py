"""The words of the course and the tokenizer that knows them: one for CLIP's text tower and the language model."""

from vlm_lite.lessons.world import COLOURS, SHAPES, SIZES

# of the grid, in words of one token that do not depend on the next word
ROWS = tuple("top upper lower bottom".split())
COLUMNS = tuple("leftmost left right rightmost".split())
LETTERS = tuple("A. B. C. D.".split())
SPECIAL = tuple("<pad> <unk> <image> <user> <assistant> <eos>".split())
_WORDS = """
a about above all also an and animal answer any are at background be below big black both bottom by can caption cat
centre character choose color colored colors colour coloured colours column compare contains corner count curly
dark describe detail different digit dog do does drawing each eight else empty every exactly far find five following
for four from give grid hand handwritten has have hello help here hi how i image in inside is it items its just kind
large left many letter like list little located look looks lower me middle more most near next nine no not nothing now
number numbers
object objects of on one only onto option or other out over page paper pattern person photo picture place placed
please position question read right row same say scene see seven shape shapes short show shown shows side single six
size sized small so some step sentence tell ten thank thanks that the their them then there these they thing things
think this three tiny to together top total true two under up upper us very what where which white who with without word
words write written yes you your zero big first second third fourth they're it's i'm don't you're word's
alone because behind beside between bigger biggest blank bright briefly choice choices closest cannot compared count
directly dots edge enough false fewest front given gray grey hidden if know larger largest leftmost letters lowest
highest made maybe nearest new noise noisy old oval phrase plus reading rectangle rightmost ring says sign since
smaller smallest sure than therefore using visible want was were when why would
"""


def plural(noun, n):
    """`noun` as it stands after the number `n`."""
    return noun if n == 1 else noun + ("es" if noun.endswith("s") else "s")


def vocabulary():
    """Every word the tokenizer knows, special tokens first."""
    words = {
        *_WORDS.replace("'", " ' ").split(),
        *SHAPES,
        *(plural(s, 2) for s in SHAPES),
        *COLOURS,
        *SIZES,
        *"0123456789",
        "10",
        *".,;:?!'-()",
    }
    return [*SPECIAL, *LETTERS, *sorted(words)]


def make_tokenizer():
    """The course's word tokenizer, for CLIP's text tower and the language model: lower case, one token a word.

    The option letters "A." to "D." are tokens of their own, told from the word "a" by their capital. Ids follow
    `vocabulary()`: `<pad>` is 0 and `<eos>` is 5 (never 2: transformers' CLIP pools at the highest id when it is 2).
    """
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    core.add_tokens([AddedToken(letter, normalized=False, single_word=False) for letter in LETTERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        model_max_length=256,
        additional_special_tokens=["<image>", "<user>", "<assistant>"],
        padding_side="right",
        clean_up_tokenization_spaces=True,
    )
    return tokenizer


def unknown_words(tokenizer, text):
    """The words of `text` that the tokenizer does not know, in order: tell the reader, do not swallow them."""
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    pairs = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    return [text[a:b] for i, (a, b) in pairs if i == tokenizer.unk_token_id]
