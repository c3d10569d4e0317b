"""MMedBench's layout, filled with easy questions of our own in its six languages: its files cannot be had here."""

import json
from pathlib import Path
from typing import Any


def item(question: str, options: list[str], answer: str | list[str], rationale: str, **other: object) -> dict[str, Any]:
    lettered = dict(zip("ABCDEFGH", options, strict=False))
    found = {"question": question, "options": lettered, "answer_idx": answer, "rationale": rationale}
    return found | {"human_checked": True, "human_check_passed": True} | other


MADE: dict[str, list[dict[str, Any]]] = {
    "English": [
        item(
            "Which hormone lowers the glucose of the blood?",
            ["Insulin", "Glucagon", "Cortisol", "Adrenaline"],
            "A",
            "Insulin moves glucose from the blood into muscle and fat. The other three raise it.",
        ),
        item(
            "Which vitamin is lacking in scurvy?",
            ["Vitamin A", "Vitamin C", "Vitamin D", "Vitamin K"],
            "B",
            "Scurvy comes from a lack of vitamin C, which collagen needs.",
        ),
        item(
            "How many chambers does the human heart have?",
            ["Two", "Three", "Four", "Five"],
            "C",
            "It has two atria and two ventricles.",
            human_check_passed=False,
        ),
    ],
    "Chinese": [
        item(
            "降低血糖的激素是",
            ["胰岛素", "胰高血糖素", "皮质醇", "肾上腺素"],
            "A",
            "胰岛素使葡萄糖进入肌肉和脂肪，因此血糖下降。其余三种激素升高血糖。",
        ),
        item("坏血病缺乏的维生素是", ["维生素A", "维生素C", "维生素D", "维生素K"], "B", "坏血病由维生素C缺乏引起。"),
    ],
    "Japanese": [
        item(
            "血糖を下げるホルモンはどれか。",
            ["インスリン", "グルカゴン", "コルチゾール", "アドレナリン", "成長ホルモン"],
            "A",
            "インスリンはブドウ糖を筋肉と脂肪に取り込ませて血糖を下げる。他のホルモンは血糖を上げる。",
        ),
        item(
            "脂溶性ビタミンはどれか。2つ選べ。",
            ["ビタミンA", "ビタミンB1", "ビタミンC", "ビタミンD", "葉酸"],
            ["A", "D"],
            "ビタミンA、D、E、Kは脂溶性である。",
        ),
    ],
    "French": [
        item(
            "Quels organes sont pairs ?",
            ["Le foie", "Les reins", "La rate", "Les poumons", "Le pancréas"],
            ["B", "D"],
            "L'être humain a deux reins et deux poumons. Le foie, la rate et le pancréas sont uniques.",
        ),
        item(
            "Quelle vitamine manque dans le scorbut ?",
            ["La vitamine A", "La vitamine C", "La vitamine D"],
            ["B"],
            "Le scorbut est dû à une carence en vitamine C.",
        ),
    ],
    "Russian": [
        item("Снижает ли инсулин глюкозу крови?", ["да", "нет"], "A", "Инсулин снижает уровень глюкозы в крови."),
        item("Является ли печень парным органом?", ["да", "нет"], "B", "Печень у человека одна."),
    ],
    "Spanish": [
        item(
            "¿Qué hormona baja la glucosa de la sangre?",
            ["La insulina", "El glucagón", "El cortisol", "La adrenalina"],
            "A",
            "La insulina hace entrar la glucosa en el músculo y la grasa. Las demás la suben.",
        ),
        item(
            "¿Cuántas cavidades tiene el corazón humano?",
            ["Dos", "Tres", "Cuatro", "Cinco"],
            "C",
            "Tiene dos aurículas y dos ventrículos.",
        ),
    ],
}


def write_made(folder: Path) -> Path:
    """MMedBench/Test/<Language>.jsonl in a folder, which is returned."""
    place = folder / "MMedBench" / "Test"
    place.mkdir(parents=True)
    for language, items in MADE.items():
        write_items(place / f"{language}.jsonl", items)
    return folder


def write_items(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in items), encoding="utf-8")
    return path
