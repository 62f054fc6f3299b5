"""What the verdict calls every model of finished runs, and the test that tells most of each.

    python scripts/judged.py STORE NAME of a finished run in it

Prints a table in Markdown, as docs/verdict.md has it. The last line is one JSON object: how often
each word is said.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import kept

from remnant.records import FULL, Evidence, Verdict


def strongest(evidence: list[Evidence], model: str) -> str:
    """The test in full precision that stands nearest to the target, of those that tell."""
    own = [e for e in evidence if e.model == model and e.form == FULL and e.says == "tells"]
    found = max(
        (e for e in own if e.left), key=lambda e: e.left[0] if e.left else 0.0, default=None
    )
    return found.said if found else "none tells"


def forms(verdicts: list[Verdict], model: str) -> str:
    """The word in every form, forms of one word together."""
    words: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.model == model:
            words.setdefault(verdict.outcome, []).append(verdict.form)
    return "; ".join(f"*{word}* ({', '.join(own)})" for word, own in words.items())


def main(store: str, name: str) -> None:
    """Print the table."""
    found = kept.read(Path(store) / "reports" / name / "summary.json")
    verdicts = [
        Verdict(**{k: v[k] for k in Verdict.model_fields if k in v}) for v in found["verdicts"]
    ]
    evidence = [
        Evidence(**{k: e[k] for k in Evidence.model_fields if k in e}) for e in found["evidence"]
    ]
    print("| model | called | why, in full precision | strongest test there |\n|---|---|---|---|")
    for model in dict.fromkeys(v.model for v in verdicts):
        why = next(v.reason for v in verdicts if v.model == model and v.form == FULL)
        print(f"| {model} | {forms(verdicts, model)} | {why} | {strongest(evidence, model)} |")
    print(json.dumps(Counter(v.outcome for v in verdicts)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
