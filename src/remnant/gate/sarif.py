"""Cases of a gate as SARIF 2.1.0, for code scanning.

What is open is a warning, not of the kind "open", which viewers leave out as if it had passed.
Source of the form: OASIS, Static Analysis Results Interchange Format 2.1.0.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args
from urllib.parse import quote

from pydantic import JsonValue

from remnant import __version__
from remnant.durable import digest_of
from remnant.gate.decide import Case
from remnant.records import Outcome

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def sarif(cases: Sequence[Case], policy: Path) -> str:
    """One result for every form that was promised, at the policy that promises it."""
    rules: list[JsonValue] = [
        {"id": _id(outcome), "shortDescription": {"text": f"The verdict is: {outcome}."}}
        for outcome in get_args(Outcome)
    ]
    run: dict[str, JsonValue] = {
        "tool": {"driver": {"name": "Remnant", "version": __version__, "rules": rules}},
        "results": [_result(case, policy) for case in cases],
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1) + "\n"


def _id(outcome: str) -> str:
    return outcome.replace(" ", "-")


def _result(case: Case, policy: Path) -> JsonValue:
    level = "none" if case.passed else "error" if case.failed else "warning"
    place: JsonValue = {
        "artifactLocation": {"uri": quote(os.fsencode(policy))},
        "region": {"startLine": 1},
    }
    return {
        "ruleId": _id(case.outcome),
        "ruleIndex": get_args(Outcome).index(case.outcome),
        "kind": "pass" if case.passed else "fail",
        "level": level,
        "message": {"text": f"{case.name}: {case.outcome}: {case.reason}"},
        "locations": [
            {
                "physicalLocation": place,
                "logicalLocations": [{"name": case.form, "fullyQualifiedName": case.name}],
            }
        ],
        "partialFingerprints": {"case/v1": digest_of(case.name)},
    }
