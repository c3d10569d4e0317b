"""How alike two texts are: figures of NLTK and rouge, and what other packages get wrong in Japanese and Chinese."""

import pytest

from t_elaine.evaluation import similarity, words

JAPANESE = "インスリンはブドウ糖を筋肉と脂肪に取り込ませて血糖を下げる。他のホルモンは血糖を上げる。"
CHINESE = "胰岛素使葡萄糖进入肌肉和脂肪，因此血糖下降。其余三种激素升高血糖。"
# BLEU-1, BLEU-4, ROUGE-1, ROUGE-2, ROUGE-L: nltk 3.10.4 (sentence_bleu, method1; word_tokenize's parts), jieba 0.42.1,
# janome 0.5.0, rouge 1.0.1.
FIGURES = [
    (
        "en",
        "Insulin moves sugar from the blood into the muscle, and so it falls. Glucagon doesn't.",
        "Insulin moves glucose from the blood into muscle and fat. The other three raise it.",
        (0.578947, 0.175377, 0.551724, 0.285714, 0.551724),
    ),
    ("en", "a a a b", "a b", (0.5, 0.169904, 1.0, 0.666667, 1.0)),
    (
        "ja",
        "インスリンはブドウ糖を筋肉に取り込ませ、血糖を下げる。",
        JAPANESE,
        (0.427726, 0.268826, 0.733333, 0.545455, 0.733333),
    ),
    ("zh", "胰岛素使葡萄糖进入肌肉，血糖下降。", CHINESE, (0.367879, 0.226168, 0.72, 0.48, 0.72)),
    (
        "fr",
        "Le scorbut vient d'un manque de vitamine C.",
        "Le scorbut est dû à une carence en vitamine C.",
        (0.444854, 0.1195, 0.444444, 0.25, 0.444444),
    ),
    (
        "ru",
        "Инсулин снижает глюкозу. Это гормон.",
        "Инсулин снижает уровень глюкозы в крови.",
        (0.428571, 0.077306, 0.363636, 0.222222, 0.363636),
    ),
]


def figures(language: str, ours: str, theirs: str) -> tuple[float, ...]:
    one, other = words.words(ours, language), words.words(theirs, language)
    if language in words.PACKAGES:
        ours, theirs = " ".join(one), " ".join(other)
    return (
        similarity.bleu(one, other, 1),
        similarity.bleu(one, other, 4),
        similarity.rouge(ours, theirs, 1),
        similarity.rouge(ours, theirs, 2),
        similarity.rouge_l(ours, theirs),
    )


@pytest.mark.parametrize(("language", "ours", "theirs", "wanted"), FIGURES)
def test_figures_are_the_packages(language: str, ours: str, theirs: str, wanted: tuple[float, ...]) -> None:
    assert figures(language, ours, theirs) == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize(("language", "text"), [("ja", JAPANESE), ("zh", CHINESE), ("en", "Give 1,000 mg at once.")])
def test_identical_disjoint_and_empty_texts(language: str, text: str) -> None:
    assert figures(language, text, text) == pytest.approx((1.0,) * 5)
    other = "ДНК"
    assert figures(language, text, other) == figures(language, "", text) == figures(language, "", "") == (0.0,) * 5


def test_one_common_letter_in_two_texts_is_little() -> None:
    assert figures("ja", "ビタミンAは脂溶性である。", "A型肝炎は糞口感染する。")[2] < 0.5


def test_words_of_languages_with_blanks() -> None:
    text = "The patient (Dr. Smith's) doesn't have \"pain\" in the arm. Give 1,000 mg i.v.; what else? 5.2% cannot."
    assert words.words(text, "en") == [
        *("The", "patient", "(", "Dr.", "Smith", "'s", ")", "does", "n't", "have", "``", "pain", "''", "in", "the"),
        *("arm", ".", "Give", "1,000", "mg", "i.v.", ";", "what", "else", "?", "5.2", "%", "can", "not", "."),
    ]
    assert words.words("«Острый» бронхит, т.е. воспаление.", "ru") == [
        *("«", "Острый", "»", "бронхит", ",", "т.е.", "воспаление", "."),
    ]
