"""The sample texts in samples/: documents by language, instruction pairs, preferences, and a mixture of each.

Written for this project (Apache-2.0), small, for quick starts and tests. Not a training set. The preferences' rejected
answers are wrong or of no help on purpose.
"""

from pathlib import Path

from t_elaine.data.chat_forms import openai_messages
from t_elaine.data.preference_forms import preferences
from t_elaine.data.sources import Source
from t_elaine.data.tasks import add_mixture, add_task

LANGUAGES = ("en", "ja", "zh")
CATEGORIES = ("scientific paper", "guideline", "web text", "textbook", "PubMed abstract", "PMC article")
FOLDER = Path(__file__).resolve().parent / "samples"
LICENCE = "Apache-2.0"
URL = "part of T-ELAINE: data_tasks/samples"


def _documents(language: str, category: str) -> Source:
    return Source(
        name=f"{language} {category}",
        files=(str(FOLDER / language / "documents.jsonl"),),
        language=language,
        category=category,
        licence=LICENCE,
        url=URL,
        where=(("category", category),),
    )


for _language in LANGUAGES:
    add_task(f"samples_{_language}", [_documents(_language, category) for category in CATEGORIES])
    for _category, _form in (("instruction", openai_messages), ("preference", preferences)):
        add_task(
            f"samples_{_category}s_{_language}",
            [str(FOLDER / _language / f"{_category}s.jsonl")],
            language=_language,
            category=_category,
            licence=LICENCE,
            url=URL,
            preprocessors=[_form],
        )

add_mixture("samples", {f"samples_{language}": 1.0 for language in LANGUAGES})
add_mixture("samples_instructions", {f"samples_instructions_{language}": 1.0 for language in LANGUAGES})
add_mixture("samples_preferences", {f"samples_preferences_{language}": 1.0 for language in LANGUAGES})
