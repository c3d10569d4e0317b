"""The instruction sets that the three systems name, as tasks. None is shipped: fetch them yourself, each has its terms.

Files lie under {data_root}/instruction_sets/, by the names below. Their forms are those that the publishers describe;
the files themselves were not to be had here, so only made-up records of these forms were tried. ELAINE names Medical
Meadow, HealthCareMagic, iCliniq and HuatuoGPT-II without counts, and which parts of Medical Meadow is not known. Its
MMMLU is no task here: it is made from MMLU's questions. MMedBench's Japanese part comes from IgakuQA: a model trained
on it has seen that exam.
"""

from collections.abc import Iterator
from functools import partial

from t_elaine.data.chat import ASSISTANT, USER, Turn, check
from t_elaine.data.chat_forms import any_form
from t_elaine.data.sources import Source
from t_elaine.data.tasks import add_mixture, add_task
from t_elaine.data.texts import Fields

_FOLDER = "{data_root}/instruction_sets"
_HUB = "https://huggingface.co/datasets"
_MEADOW = (
    "medical_flashcards",
    "wikidoc",
    "wikidoc_patient_information",
    "mediqa",
    "cord19",
    "health_advice",
    "pubmed_causal",
)
# task, file, language, licence, address
_SETS = (
    *(
        (
            f"medical_meadow_{part}",
            f"medical_meadow_{part}.json*",
            "en",
            "by part: see the address",
            f"{_HUB}/medalpaca",
        )
        for part in _MEADOW
    ),
    (
        "healthcaremagic",
        "HealthCareMagic*.json*",
        "en",
        "none stated: research",
        "https://github.com/Kent0n-Li/ChatDoctor",
    ),
    ("icliniq_10k", "i*linic*.json*", "en", "none stated: research", "https://github.com/Kent0n-Li/ChatDoctor"),
    (
        "huatuogpt2_en",
        "HuatuoGPT2_en*.json*",
        "en",
        "see the address",
        "https://github.com/FreedomIntelligence/HuatuoGPT-II",
    ),
    (
        "huatuogpt2_zh",
        "HuatuoGPT2_zh*.json*",
        "zh",
        "see the address",
        "https://github.com/FreedomIntelligence/HuatuoGPT-II",
    ),
    ("pmc_llama_instructions", "pmc_llama*.json*", "en", "see the address", f"{_HUB}/axiong/pmc_llama_instructions"),
)
for _name, _file, _language, _licence, _url in _SETS:
    add_task(
        _name,
        [f"{_FOLDER}/{_file}"],
        language=_language,
        category="instruction",
        licence=_licence,
        url=_url,
        preprocessors=[any_form],
    )
add_mixture("elaine_instructions", {name: 1.0 for name, *_ in _SETS if not name.startswith("pmc_llama")})

# MAGIC-AI4Med/MMedLM finetune/train.py:18-29, 84-95, to the byte.
WITH_REASON = (
    "You're a {language} doctor, kindly address the medical queries according to the patient's account in {language}. "
    "Let\u2019s solve this step-by-step. You should first give the reason in {language} for your choice. "
    "Then you should give the right answer index of the question."
)
ANSWER_ALONE = (
    "You're a {language} doctor, kindly address the medical queries according to the patient's account. "
    "Answer with the best option directly."
)
QUESTION = (
    "###Question: {question} Which of the following is the best treatment for this patient? ###Options: {options}"
)
LANGUAGES = {
    "English": "en",
    "Chinese": "zh",
    "Japanese": "ja",
    "French": "fr",
    "Russian": "ru",
    "Spanish": "es",
}


def mmedbench(fields: Fields, *, language: str) -> Iterator[Fields]:
    """A question of MMedBench's train files as MMedLM was tuned on it: with its rationale, and without.

    Raises:
        ValueError: a field is missing, or the answer is none of the options.
    """
    question, options, answers = (fields.get(name) for name in ("question", "options", "answer_idx"))
    if not isinstance(question, str) or not isinstance(options, dict):
        raise ValueError("missing field: question or options")
    letters = [answers] if isinstance(answers, str) else list(answers or ())
    letters = [letter.strip() for part in letters for letter in str(part).split(",")]
    if not letters or not set(letters) <= set(options):
        raise ValueError(f"answer outside the options: {answers!r} of {''.join(options)}")
    listed = "".join(f"{letter}. {text} " for letter, text in options.items())
    asked = QUESTION.format(question=question, options=listed)
    told = f"###Answer: OPTION {','.join(letters)} IS CORRECT."
    reason = str(fields.get("rationale") or "").strip()
    pairs = [(WITH_REASON, f"###Rationale: {reason}\n{told}")] if reason else []
    for instruction, answer in (*pairs, (ANSWER_ALONE, told)):
        turns = (Turn(USER, instruction.format(language=language), asked), Turn(ASSISTANT, answer))
        yield {**fields, "turns": check(turns)}


for _language, _code in LANGUAGES.items():
    _source = Source(
        name=f"mmedbench_{_code}",
        files=(f"{_FOLDER}/MMedBench/Train/{_language}.jsonl",),
        language=_code,
        category="instruction",
        licence="see the address",
        url=f"{_HUB}/Henrychur/MMedBench",
    )
    add_task(f"mmedbench_{_code}", [_source], preprocessors=[partial(mmedbench, language=_language)])
add_mixture("mmedbench", {f"mmedbench_{code}": 1.0 for code in LANGUAGES.values()})
