"""Tasks for a folder of public biomedical text in English, Japanese and Chinese, named by the setting `data_root`.

The folder holds corpora/<language>/<name>.jsonl.gz, general_replay/<language>.jsonl.gz and instructions/<language>/…;
each row has `id`, `text`, `category`. Licences are those that the publishers state; "none stated": for tests only,
and `allowed_licences` keeps it out of a run.
"""

from functools import partial

from t_elaine.data.chat_forms import alpaca, columns, marked, openai_messages, sharegpt
from t_elaine.data.sources import Source
from t_elaine.data.tasks import add_mixture, add_task
from t_elaine.data.texts import Preprocessor

NONE = "none stated"
_GITHUB = "https://github.com/"
HUATUO = "SCIR-HI/Huatuo-Llama-Med-Chinese"
SUMMARISE = "Write the section of a clinical note that sums up the conversation of doctor and patient."
# language, name of file and task, size in MB (the default weight, so that all are passed equally often), licence,
# repository, categories in the file
_CORPORA: tuple[tuple[str, str, float, str, str, tuple[str, ...]], ...] = (
    ("en", "pubmedqa_abstracts", 0.83, "MIT", "pubmedqa/pubmedqa", ("PubMed abstract",)),
    ("en", "craft_pmc_articles", 3.62, "CC-BY-3.0", "UCDenver-ccp/CRAFT", ("PMC article",)),
    ("en", "openstax_anatomy_physiology", 3.6, "CC-BY-NC-SA-4.0", "openstax/osbooks-anatomy-physiology", ("textbook",)),
    ("en", "medquad_nih_web", 4.0, "CC-BY-4.0", "abachaa/MedQuAD", ("web text",)),
    ("en", "ngc_guideline_summaries", 4.47, NONE, "JesseTG/ngc_dump", ("guideline",)),
    ("ja", "fornix_medical_notes", 5.52, "MIT", "shumez/mnemosyne", ("textbook",)),
    ("ja", "aozora_medicine", 3.24, "CC-BY-2.1-JP", "aozorahack/aozorabunko_text", ("textbook",)),
    ("ja", "case_and_radiology_reports", 0.39, "CC-BY-4.0", "sociocom/JMED-LLM", ("scientific paper", "web text")),
    ("ja", "dental_curriculum_guideline", 0.25, "PDL-1.0", "yosukey/shika-curriculum-kokushi-data", ("guideline",)),
    ("ja", "wikipedia_medical_jaquad", 0.36, "CC-BY-SA-3.0", "SkelterLabsInc/JaQuAD", ("web text",)),
    ("ja", "pseudo_nursing_records", 0.12, "CC-BY-NC-SA-4.0", "sociocom/PseudoNursingRecords", ("web text",)),
    ("ja", "pediatric_dosage_labels", 0.03, NONE, "nekoneko0404/search-for-medicine", ("guideline",)),
    (
        "zh",
        "chinaxiv_medical_papers",
        4.27,
        "CC-BY-4.0",
        "DreamBlooms/ChinaXiv-201601-to-202209",
        ("scientific paper",),
    ),
    ("zh", "chinaxiv_guidelines_consensus", 0.43, "CC-BY-4.0", "DreamBlooms/ChinaXiv-201601-to-202209", ("guideline",)),
    ("zh", "tcm_ancient_books", 3.38, NONE, "xiaopangxia/TCM-Ancient-Books", ("textbook",)),
    ("zh", "diagmind_clinical_notes_hant", 0.74, NONE, "diagmindtw/vs", ("textbook",)),
    ("zh", "covid_consultations_web", 1.48, NONE, "UCSD-AI4H/COVID-Dialogue", ("web text",)),
)
_PARTS = (
    ("ncbi_disease", "public domain (US Government work)", "spyysalo/ncbi-disease"),
    ("huatuogpt2_abstracts", NONE, "FreedomIntelligence/HuatuoGPT-II"),
)
_REPLAY = (
    ("en", "CC-BY-SA; public domain (USA)", "pytorch/examples; GITenberg/The-Adventures-of-Sherlock-Holmes_1661"),
    (
        "ja",
        "CC-BY-SA-3.0; CC-BY-2.5; public domain (Japan)",
        "SkelterLabsInc/JaQuAD; tm4roon/jawikinews-headline-dataset",
    ),
    ("zh", "CC-BY-SA-4.0; CC-BY-SA-3.0", "ymcui/cmrc2018; DRCKnowledgeTeam/DRCD"),
)


def _source(name: str, file: str, language: str, category: str, licence: str, url: str, **more: object) -> Source:
    where = {"name": name, "files": ("{data_root}/" + file,), "language": language, "category": category}
    return Source(**(where | {"licence": licence, "url": _GITHUB + url} | more))  # type: ignore[arg-type]


for _language, _name, _, _licence, _repository, _categories in _CORPORA:
    _file = f"corpora/{_language}/{_name}.jsonl.gz"
    add_task(
        _name,
        [
            _source(
                f"{_name} {category}",
                _file,
                _language,
                category,
                _licence,
                _repository,
                where=(("category", category),),
            )
            for category in _categories
        ],
    )
add_task(
    "pubmed_abstracts_mixed",
    [
        _source(
            name,
            "corpora/en/pubmed_abstracts_mixed.jsonl.gz",
            "en",
            "PubMed abstract",
            licence,
            repository,
            where=(("source", repository),),
        )
        for name, licence, repository in _PARTS
    ],
)
for _language, _licence, _repository in _REPLAY:
    _file = f"general_replay/{_language}.jsonl.gz"
    add_task(f"general_{_language}", [_source("general", _file, _language, "general", _licence, _repository)])

# name, file, licence, repository, form
_INSTRUCTIONS: tuple[tuple[str, str, str, str, Preprocessor], ...] = (
    ("wikidoc_patient", "en/wikidoc_patient.alpaca.jsonl.gz", "GPL-3.0; CC-BY-SA", "kbressem/medAlpaca", alpaca),
    ("genmedgpt", "en/genmedgpt_array.alpaca.json.gz", "Apache-2.0", "Kent0n-Li/ChatDoctor", alpaca),
    (
        "covid_dialogue_en",
        "en/covid_dialogue.sharegpt.jsonl.gz",
        NONE,
        "UCSD-AI4H/COVID-Dialogue",
        partial(sharegpt, cut_open_end=True),
    ),
    (
        "mts_dialog",
        "en/mts_dialog_train.csv.gz",
        "CC-BY-4.0",
        "abachaa/MTS-Dialog",
        partial(columns, user=("dialogue",), assistant="section_text", instruction=SUMMARISE),
    ),
    ("icliniq", "en/icliniq.messages.jsonl.gz", "MIT", "LasseRegin/medical-question-answer-data", openai_messages),
    ("medical_school_quiz", "ja/medical_school_quiz.alpaca.jsonl.gz", NONE, "Igaki12/anywhere-final", alpaca),
    ("physiology_quiz", "ja/physiology_quiz.sharegpt.jsonl.gz", NONE, "Igaki12/anywhere-2seiriNMU", sharegpt),
    (
        "pharmacist_hygiene",
        "ja/pharmacist_hygiene.messages.jsonl.gz",
        "exam text: MHLW; explanations: none stated",
        "tmatsuka-art/eisei_yakugaku",
        openai_messages,
    ),
    ("huatuo_knowledge", "zh/huatuo_knowledge.alpaca.jsonl.gz", "Apache-2.0", HUATUO, alpaca),
    ("huatuo_liver_cancer", "zh/huatuo_liver_cancer_multiturn.alpaca.json.gz", "Apache-2.0", HUATUO, marked),
    ("medical_sft_zh", "zh/medical_sft.sharegpt.jsonl.gz", "Apache-2.0", "shibing624/MedicalGPT", sharegpt),
    (
        "internal_medicine_qa",
        "zh/internal_medicine_qa.csv.gz",
        "MIT",
        "Toyhom/Chinese-medical-dialogue-data",
        partial(columns, user=("title", "ask"), assistant="answer"),
    ),
    (
        "covid_dialogue_zh",
        "zh/covid_dialogue.messages.jsonl.gz",
        NONE,
        "UCSD-AI4H/COVID-Dialogue",
        partial(openai_messages, cut_open_end=True),
    ),
)
for _name, _file, _licence, _repository, _form in _INSTRUCTIONS:
    _said = _source(_name, f"instructions/{_file}", _file[:2], "instruction", _licence, _repository)
    add_task(_name, [_said], preprocessors=[_form])

_OPEN = {name: size for _, name, size, licence, _, _ in _CORPORA if licence != NONE}
_GENERAL = {"general_en": 1.7, "general_ja": 2.56, "general_zh": 2.68}
add_mixture("public_corpora", _OPEN)
add_mixture("public_corpora_with_replay", _OPEN | _GENERAL)
add_mixture("all_public_corpora", {name: size for _, name, size, *_ in _CORPORA} | {"pubmed_abstracts_mixed": 1.49})
# In MB of their files, so that all are passed equally often.
_SAID = (2.2, 1.02, 0.43, 1.04, 0.71, 0.77, 0.17, 0.42, 2.0, 1.06, 0.77, 2.43, 0.47)
add_mixture("public_instructions", {name: size for (name, *_), size in zip(_INSTRUCTIONS, _SAID, strict=True)})
