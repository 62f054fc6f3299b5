"""Cases of a gate as JUnit XML: what was shown to be there is a failure, what is open an error.

Nothing is ever skipped, since pipelines take that for a pass. Source of the form: the schema
JUnit.xsd of windyroad/JUnit-Schema.
"""

import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from xml.etree import ElementTree

from remnant.gate.decide import Case

# What XML 1.0 cannot hold, escaped or not.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(cases: Sequence[Case]) -> str:
    """One test case for every form that was promised."""
    shown = {
        "name": "remnant gate",
        "package": "remnant",
        "id": "0",
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "hostname": _plain(platform.node()) or "localhost",
        "tests": str(len(cases)),
        "failures": str(sum(c.failed for c in cases)),
        "errors": str(sum(not c.failed and not c.passed for c in cases)),
        "time": "0",
    }
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(suites, "testsuite", shown)
    ElementTree.SubElement(suite, "properties")
    for case in cases:
        about = {"classname": "remnant.gate", "name": _plain(case.name), "time": "0"}
        place = ElementTree.SubElement(suite, "testcase", about)
        if not case.passed:
            said = {"type": case.outcome, "message": _plain(f"{case.outcome}: {case.reason}")}
            ElementTree.SubElement(place, "failure" if case.failed else "error", said)
    for name in ("system-out", "system-err"):
        ElementTree.SubElement(suite, name)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _plain(text: str) -> str:
    return _NO_XML.sub("?", text)
