"""Task files for lm-eval beside an export: exams that lm-eval lacks (data_tasks/lm_eval). No exam is copied."""

import shutil
from pathlib import Path

from t_elaine import paths

FOLDER = "lm_eval"
PROMPTS = "likelihood.json"


def write(folder: Path) -> None:
    """Make FOLDER/lm_eval: tasks, the code that they name, and the prompts of the protocol `likelihood`."""
    shipped = paths.shipped("data_tasks")
    target = folder / FOLDER
    target.mkdir()
    for file in sorted((shipped / FOLDER).iterdir()):
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    shutil.copyfile(shipped / "protocols" / PROMPTS, target / PROMPTS)
