"""Rules for the whole suite: what CI promises to run may not be skipped silently."""

import os
from importlib import metadata

import pytest

# What `HELLOFMT_REQUIRE=interp,aot` names must run: a skip there is an error, not a shrug.
_REQUIRED = frozenset(filter(None, os.environ.get("HELLOFMT_REQUIRE", "").split(",")))


# What `HELLOFMT_VERSIONS=triton==3.6.0` names is what these tests are run for.
_VERSIONS = os.environ.get("HELLOFMT_VERSIONS", "")


def pytest_sessionstart():
    for requirement in filter(None, _VERSIONS.split(",")):
        name, _, wanted = requirement.partition("==")
        if metadata.version(name) != wanted:
            message = f"HELLOFMT_VERSIONS demands {requirement}, got {metadata.version(name)}"
            raise pytest.UsageError(message)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and _REQUIRED & {mark.name for mark in item.iter_markers()}:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but HELLOFMT_REQUIRE demands it"
    return report
