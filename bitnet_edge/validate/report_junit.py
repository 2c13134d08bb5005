# SPDX-License-Identifier: MIT
"""A report as JUnit XML, which every CI system shows."""

from __future__ import annotations

from xml.etree import ElementTree

from bitnet_edge.validate.report import FAIL, SKIP, Report

__all__ = ["junit"]


def junit(report: Report) -> str:
    """Return one test suite with a test case a check."""
    suite = ElementTree.Element(
        "testsuite",
        name="bitnet-edge validate",
        tests=str(len(report.checks)),
        failures=str(sum(check.status == FAIL for check in report.checks)),
        errors="0",
        skipped=str(sum(check.status == SKIP for check in report.checks)),
        time=f"{sum(check.seconds for check in report.checks):.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("file", report.file),
        ("model", report.model),
        ("device", report.device),
        *((key, str(value)) for key, value in report.machine.items()),
    ):
        ElementTree.SubElement(properties, "property", name=name, value=value)
    for check in report.checks:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{report.model or report.file} on {report.device}",
            name=check.name,
            time=f"{check.seconds:.3f}",
        )
        if check.status == FAIL:
            ElementTree.SubElement(case, "failure", message=check.line).text = check.line
        elif check.status == SKIP:
            ElementTree.SubElement(case, "skipped", message=check.line)
        else:
            ElementTree.SubElement(case, "system-out").text = check.line
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'
