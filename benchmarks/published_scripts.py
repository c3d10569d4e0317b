"""Runs the published scripts on several suites with one loaded model, by a Python that has vLLM; see `published`.

    cd FOLDER_OF_SCRIPTS/..; PYTHON published_scripts.py '[["en", "EXAM.jsonl", "OUT"], …]' MODEL

The scripts run as they are, `experiment_main.py` once a suite, with what its shell script passes. Two things around
them are not as they were: `vllm.LLM` gives the same model to each suite, where a start takes minutes; and torch's
process group, which the scripts destroy at their end, is made for that, since vLLM now keeps its own elsewhere.
"""

import functools
import json
import os
import runpy
import sys

SHOTS = 5


def main() -> None:
    """See the module."""
    import torch.distributed
    import vllm

    sys.path.insert(0, "scripts")
    vllm.LLM = functools.lru_cache(maxsize=1)(vllm.LLM)
    for language, exam, out in json.loads(sys.argv[1]):
        if os.path.exists(os.path.join(out, os.path.basename(exam))):
            continue
        os.makedirs(out, exist_ok=True)
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        flags = {"in-file": exam, "hf_model_path": sys.argv[2], "out-dir": out, "vllm_paralell": "1"}
        flags |= {"lang": language, "few_shots": str(SHOTS)}
        given, sys.argv = sys.argv, ["experiment_main.py", *(x for k, v in flags.items() for x in (f"--{k}", v))]
        runpy.run_path("scripts/experiment_main.py", run_name="__main__")
        sys.argv = given


if __name__ == "__main__":
    main()
