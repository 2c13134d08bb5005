# SPDX-License-Identifier: MIT
"""``bitnet-edge validate FILE --device D``: prove that a file does what its plan says.

Exit codes: 0 every check passed, 1 one failed, 2 unusable arguments or input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from bitnet_edge.bench.gate import load_baseline, parse_allowance, save_baseline
from bitnet_edge.cli.text import print_json, table
from bitnet_edge.errors import ArgumentError
from bitnet_edge.validate.report import FAIL, Report
from bitnet_edge.validate.run import GROUPS, MAX_LATENCY, MAX_MEMORY, stored, validate

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", help="a .bte file")
    parser.add_argument(
        "--device", help="profile name or YAML file; default: the one the file was planned for"
    )
    parser.add_argument(
        "--host",
        action="store_true",
        help="this machine stands in for the device: it need not have its instruction sets",
    )
    parser.add_argument("--threads", type=int, help="threads of a run; default: the plan's")
    parser.add_argument(
        "--skip", action="append", choices=GROUPS, default=[], help="checks to leave out"
    )
    parser.add_argument("--golden", metavar="GOLDEN.json", help="expect these outputs")
    parser.add_argument("--save-golden", metavar="GOLDEN.json", help="store the outputs")
    parser.add_argument(
        "--prompt", action="append", default=[], help="a text to continue in --save-golden"
    )
    parser.add_argument("--baseline", metavar="BASE.json", help="fail where it was better")
    parser.add_argument("--save-baseline", metavar="BASE.json", help="store the measurements")
    parser.add_argument("--max-memory", help=f"over the baseline; default +{MAX_MEMORY:.0%}%")
    parser.add_argument("--max-latency", help=f"over the baseline; default +{MAX_LATENCY:.0%}%")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--junit", metavar="REPORT.xml", help="write JUnit XML")
    parser.add_argument("--html", metavar="REPORT.html", help="write one page for people")
    parser.add_argument(
        "--github",
        action="store_true",
        default=os.environ.get("GITHUB_ACTIONS") == "true",
        help="print annotations for GitHub; default: where GITHUB_ACTIONS is true",
    )


def run(args: argparse.Namespace) -> int:
    """Validate, print, write the reports."""
    _check(args)
    golden = None
    if args.golden:
        from bitnet_edge.validate.golden import load_golden

        golden = load_golden(args.golden)
    baseline = load_baseline(args.baseline) if args.baseline else None
    allowances = {
        "max_memory": parse_allowance(args.max_memory) if args.max_memory else MAX_MEMORY,
        "max_latency": parse_allowance(args.max_latency) if args.max_latency else MAX_LATENCY,
    }
    report = validate(
        args.file,
        args.device,
        host=args.host,
        threads=args.threads,
        skip=args.skip,
        golden=golden,
        baseline=baseline,
        **allowances,
    )
    _print(report, as_json=args.json)
    if args.github:
        from bitnet_edge.validate.report_github import github

        for line in github(report):
            print(line, file=sys.stderr if args.json else sys.stdout)
    for check in report.failures():
        print(f"bitnet-edge: {check.name}: {check.line}", file=sys.stderr)
    _write(report, args)
    return 0 if report.passed else 1


def _check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other."""
    if args.golden and args.save_golden:
        raise ArgumentError("[validate] expected --golden or --save-golden, got both")
    if args.prompt and not args.save_golden:
        raise ArgumentError("[validate] --prompt needs --save-golden")
    if (args.max_memory or args.max_latency) and not args.baseline:
        raise ArgumentError("[validate] --max-memory and --max-latency need --baseline")
    for flag, value, group in (
        ("--max-memory", args.max_memory, "memory"),
        ("--max-latency", args.max_latency, "speed"),
        ("--save-baseline", args.save_baseline, "memory"),
        ("--save-baseline", args.save_baseline, "speed"),
    ):
        if value and group in args.skip:
            raise ArgumentError(f"[validate] {flag} contradicts --skip {group}")


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
        return
    print(f"{report.model or report.file} on {report.device}: {report.file}")
    rows = [
        (c.status.upper() if c.status == FAIL else c.status, c.name, c.line) for c in report.checks
    ]
    print(table(rows))
    print(report.summary)


def _write(report: Report, args: argparse.Namespace) -> None:
    """Write what was asked for; nothing becomes a standard that has failed."""
    from bitnet_edge.atomic import write_text

    if args.junit:
        from bitnet_edge.validate.report_junit import junit

        write_text(args.junit, junit(report))
    if args.html:
        from bitnet_edge.validate.report_html import page

        write_text(args.html, page(report))
    if not report.passed:
        for path in filter(None, (args.save_golden, args.save_baseline)):
            print(f"bitnet-edge: {path} is not written: a check failed", file=sys.stderr)
        return
    if args.save_golden:
        from bitnet_edge.validate.golden import make_golden

        write_text(
            args.save_golden, json.dumps(make_golden(args.file, args.prompt), indent=2) + "\n"
        )
    if args.save_baseline:
        save_baseline(stored(report), args.save_baseline)
