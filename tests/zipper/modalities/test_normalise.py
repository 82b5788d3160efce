"""What is written to what is said: folded where it has one reading, refused where it has none."""

import re
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipper.config import DataConfig
from zipper.corpora.lists import sentences_of
from zipper.corpora.spoken import recipe_hash, spoken_texts
from zipper.corpora.utterance import Utterance, normal_text
from zipper.data.skipped import check_raw
from zipper.errors import DataError
from zipper.modalities.normalise import APOSTROPHES, NORMALISER, PLAIN, normalise, normaliser_of, unreadable
from zipper.modalities.text import Text

APOSTROPHE_KINDS = "'`\u00b4\u2018\u2019\u2032\u02b9\u02bc\uff07"
ALPHABET = string.printable + APOSTROPHES + "ßæøłÉéïﬁжя日\u00ad\u200b\ufeff\u0301“”«»—…½²€™\ufffd"
SPOKEN = "%&@#$+=€£¥°§©™/\\|^~<>[]{}()½²Ⅳ٣√№♥"


@pytest.mark.parametrize("apostrophe", APOSTROPHE_KINDS)
def test_an_apostrophe_of_any_kind_is_kept_in_a_word_and_is_none_beside_it(apostrophe):
    text = "Don't 'quote him', he said: 'yes' ' no".replace("'", apostrophe)
    assert unreadable(text) is None
    assert normalise(text) == "don't quote him he said yes no"
    assert normalise(f"{apostrophe}Tis the boys{apostrophe} book o{apostrophe} rhymes") == (
        "'tis the boys' book o' rhymes"
    )


def test_quotation_marks_are_dropped():
    other = "\u00abso\u00bb \u201eit\u201c \u201ais\u2018"
    for text in ("``so it is''", "\u201cso it is\u201d", '"so it is"', other):
        assert unreadable(text) is None
        assert normalise(text) == "so it is"


def test_marks_of_emphasis_are_silent_about_words_and_refused_within_them():
    for text in ("_really_ good", "*really*\n* good", "__really *good*__", "“_Really_!” good"):
        assert unreadable(text) is None
        assert normalise(text) == "really good"
    for text in ("_so_ snake_case", "f*ck", "_any_thing", "_it_'s", "a**b"):
        assert f"{text.split()[-1]!r}), which has no unique reading" in unreadable(text)


@pytest.mark.parametrize(
    "text",
    [
        "'cause the boys' house", "'bout yo' house an' 'ome", "'e took 'is 'at",
        "rock 'n' roll", "'tis o' him",
        "he 'ad th' best o' befo' it", "'scuse the dogs' noise", "'round 'til 'er sisters' time",
    ],
)  # fmt: skip
def test_the_apostrophes_of_a_transcript_are_left_as_published(text):
    assert normalise(text) == normalise(text.upper()) == text


def test_pairs_of_apostrophes_quote_a_word_or_a_phrase():
    quoted = ("'hello'", "he said 'good morning' to 'em", "'yes' an' 'no'", "'e said 'hello' an' 'good day'")
    for text in quoted:
        plain = re.sub("'(hello|good morning|good day|yes|no)'", r"\1", text)
        assert normalise(text) == normalise(text.upper()) == plain
    assert normalise("'It is so, 'cause the boys' house is.") == "it is so 'cause the boys house is"


def test_letters_with_one_reading_are_folded_and_invisible_characters_leave_no_gap():
    text = "Straße ærø Łódź Œuvre ÞÓR Đuro Iðunn naïve ﬁne hel\u00adlo zero\u200bwid\u200cth\ufeff"
    assert unreadable(text) is None
    assert normalise(text) == "strasse aero lodz oeuvre thor duro idunn naive fine hello zerowidth"


@pytest.mark.parametrize("sign", SPOKEN)
def test_a_sign_that_may_be_said_is_refused_wherever_it_stands(sign):
    for text in (f"five {sign} of them", f"a{sign}b", sign):
        assert unreadable(text) is not None
        assert normal_text(text) == text  # so that it is refused, and not read without it


@pytest.mark.parametrize(
    "text", ["i said привет", "日本語", "ŋ", "αβγ", "x\u207f", "שלום", "\x92", "\ufffd", "a\x00b"]
)
def test_other_letters_and_damaged_text_are_refused(text):
    with pytest.raises(DataError, match="Utterance a: its text"):
        check_raw(Utterance("a", "a.wav", normal_text(text), "s", "train"), Text(None))


@pytest.mark.parametrize(
    "tag", ["<PERIOD>", "<unk>", "[noise]", "(laughter)", "{NSN}", "</s>", "[speaks\nfrench]"]
)
def test_a_tag_is_refused_and_named(tag):
    reason = unreadable(f"so it {tag} is") or ""
    assert reason.startswith("has a tag (")
    assert tag.split("\n")[0].strip("<>[](){}") in reason
    assert "\n" not in reason


@given(st.text(st.sampled_from(ALPHABET)))
def test_what_is_accepted_loses_no_letter_and_is_stable(text):
    normal = normalise(text)
    assert normalise(normal) == normal
    assert {*normal} <= {*string.ascii_lowercase, " ", "'"}
    assert unreadable(normal) is None
    if unreadable(text) is None:
        letters = [c for c in text if unicodedata.category(c)[0] in "LN" and c not in APOSTROPHES]
        assert len(normal.replace(" ", "").replace("'", "")) >= len(letters)


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1), min_size=1))
def test_plain_text_is_left_as_it_was_and_keeps_its_hashes(words):
    text = " ".join(words)
    assert normalise(text) == text
    assert normaliser_of([text]) == PLAIN == "librispeech-1"
    assert normaliser_of([text, "it's"]) == NORMALISER


def test_the_embedded_corpus_keeps_its_name():
    assert recipe_hash(DataConfig()) == "19a09243b4ab"
    assert normaliser_of(text for split in spoken_texts(DataConfig()).values() for text in split) == PLAIN


def test_sentences_of_books_without_one_reading_are_left_out_and_counted(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(
        "It is so. In 1851 it rained. \u201cIt's 'well'\u201d! [Noise] here. AT&T rang. " + "so " * 41,
        encoding="utf-8",
    )
    assert sentences_of(file)[0] == ["it is so", "it's well"]
    assert sum(sentences_of(file)[1].values()) == 4


def test_a_sentence_has_40_words_at_most(tmp_path):
    (tmp_path / "a.txt").write_text(f"{'so ' * 40}.\n\n{'no ' * 41}.", encoding="utf-8")
    found, skipped = sentences_of(tmp_path / "a.txt")
    assert found == [" ".join(["so"] * 40)]
    assert skipped == {"of more than 40 words": 1}


def test_round_brackets_of_books_are_asides_and_those_of_tags_and_within_words_are_not(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(
        "He said (softly) no. (It is _so_. I know.)\n\n* * *\n\nWord(s) here. [So] it is. <so> is.",
        encoding="utf-8",
    )
    assert sentences_of(file)[0] == ["he said softly no", "it is so", "i know"]
    assert sum(sentences_of(file)[1].values()) == 3
    assert unreadable("he said (laughter) no").startswith("has a tag")
