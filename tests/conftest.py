"""Rules for the whole suite: what CI promises to run may not be skipped silently."""

import os

import pytest

# What `HELLOFMT_REQUIRE=interp,aot` names must run: a skip there is an error, not a shrug.
_REQUIRED = frozenset(filter(None, os.environ.get("HELLOFMT_REQUIRE", "").split(",")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and _REQUIRED & {mark.name for mark in item.iter_markers()}:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but HELLOFMT_REQUIRE demands it"
    return report
