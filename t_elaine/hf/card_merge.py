"""The part of a model card that says what a model was merged from, and how: parent/merge.json as a table."""

from typing import Any

from t_elaine import parentage
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.hf import card_data, hub, side_files

USED = {
    "linear": ("normalize",),
    "slerp": ("t",),
    "task_arithmetic": ("normalize", "scale"),
    "ties": ("normalize", "scale", "rescale"),
}
DRAWN = ("normalize", "scale", "rescale", "seed")


def section(run_dir: str, meta: CheckpointMeta, built: str, say: dict[str, Any]) -> str:
    """The merged models with weights, licences and fingerprints; "" for a run whose model was not merged."""
    merge = side_files.merge_record(run_dir)
    if not merge:
        return ""
    rows = [
        [
            parent["name"],
            parent["role"],
            "–" if parent["weight"] is None else parent["weight"],
            "; ".join(parent["licence"]) or card_data.UNKNOWN,
            f"{parent['fingerprint'][:16]}…",
        ]
        for parent in merge["parents"]
    ]
    settings = [f"{name} {merge[name]}" for name in USED.get(merge["method"], DRAWN)]
    if merge["method"] == "ties" or merge["method"].startswith("dare"):
        densities = [parent["density"] for parent in merge["parents"] if parent["density"] is not None]
        settings.append(f"density {', '.join(map(str, densities))}")
    told = [say["merge_made"].format(method=merge["method"], settings="; ".join(settings))]
    told += [say["merge_trained"].format(steps=f"{meta.step:,}")] if meta.step else []
    legal = parentage.terms(run_dir)
    terms = say["parent_terms"].format(names=", ".join(legal)) if legal else say["parent_no_licence"]
    parts = [say["merge_parents"], " ".join(told), card_data.table(say["merge_header"], rows), terms]
    return "\n\n".join([*parts, *([f"**{built}**"] if built else [])])


def bases(run_dir: str) -> list[str]:
    """Names on the hub of the merged models, commits left out; [] for a run whose model was not merged."""
    names = [parent["origin"].partition("@")[0] for parent in side_files.merge_record(run_dir).get("parents", [])]
    return list(dict.fromkeys(name for name in names if hub.is_name(name)))
