"""Builds the wheel: gin_configs/ and data_tasks/ stand at the top of a checkout and go into t_elaine/_shipped/.

A package-dir mapping in pyproject.toml would do for a wheel, but breaks an editable install.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShippedFiles(build_py):
    """build_py, then a copy of the shipped folders into the built package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in ("gin_configs", "data_tasks"):
            target = Path(self.build_lib) / "t_elaine" / "_shipped" / folder
            shutil.copytree(folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


setup(cmdclass={"build_py": BuildWithShippedFiles})
