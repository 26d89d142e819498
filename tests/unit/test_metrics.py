"""The table of metrics, and what speaks of them: the page, the alert rules, the dashboards, the scrape, the code."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain import metrics
from domain.consistency import Inconsistency
from domain.lifecycle import Outcome, Phase
from domain.metrics import Flow, Kind

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
PAGE = (PROJECT / "docs/reference/metrics.md").read_text()
BY_NAME = {metric.name: metric for metric in metrics.ALL}
PROMETHEUS = {"up", "ALERTS"}
ALERTS = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))

WORDS = {
    *("and", "or", "unless", "on", "by", "sum", "max", "count"),
    *("rate", "increase", "absent", "time", "label_replace", "histogram_quantile"),
}
"""PromQL's own."""


def expressions() -> Iterator[tuple[str, str]]:
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Every metric of a PromQL expression with the labels that are matched; what is grouped by is no metric."""
    bare = re.sub(r"(?:\bby|\bon)\s*\([^)]*\)", " ", expression)
    for found in re.finditer(r"([a-zA-Z_]\w*)(?:\{([^}]*)\})?", re.sub(r'"[^"]*"', '""', bare)):
        if found[1] not in WORDS and not re.fullmatch(r"[smhd]", found[1]):
            yield found[1], set(re.findall(r"(\w+)\s*[=!]", found[2] or ""))


def told(name: str) -> str:
    """The metric that a series of this name belongs to: a histogram has three kinds of series."""
    for suffix in ("_bucket", "_count", "_sum"):
        known = name.removesuffix(suffix)
        if known != name and (known in metrics.SDK or BY_NAME[known].kind is Kind.HISTOGRAM):
            return known
    return name


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_rules_and_dashboards_name_metrics_and_labels_that_there_are(where: str, expression: str) -> None:
    found = list(selectors(expression))
    assert found
    for name, labels in found:
        assert told(name) in {*BY_NAME, *metrics.SDK, *PROMETHEUS}, where
        if metric := BY_NAME.get(told(name)):
            assert labels - {"le", "job"} <= {*metric.labels}, where


def test_dashboards_show_every_metric_of_ours() -> None:
    shown = {told(name) for _, expression in expressions() for name, _ in selectors(expression)}
    assert {*BY_NAME} <= shown


def test_the_page_has_the_table() -> None:
    rows = {
        cells[0]: cells[1:]
        for line in PAGE.splitlines()
        if line.startswith("| `scopemarchiver_")
        for cells in [[cell.strip() for cell in line.strip("|").split(" | ")]]
    }
    assert rows == {
        f"`{metric.name}`": [
            metric.kind.value,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.source,
            metric.meaning,
        ]
        for metric in metrics.ALL
    }
    assert all(f"| `{name}` | {meaning} |" in PAGE for name, meaning in metrics.SDK.items())


def test_the_page_has_every_label_and_its_values() -> None:
    values = {
        label.strip(" `"): line
        for line in PAGE.splitlines()
        if line.startswith("| `") and line.count("|") == 3
        for label in line.split("|")[1].split(",")
    }
    for metric in metrics.ALL:
        assert {*metric.labels} - {"older_than_hours", "status"} <= values.keys(), metric.name
    phases = [phase for phase in Phase if phase is not Phase.DONE]
    for label, all_of in (("flow", Flow), ("phase", phases), ("outcome", Outcome), ("kind", Inconsistency)):
        assert all(value.value in values[label] for value in all_of), label


def test_every_metric_is_told_somewhere() -> None:
    variables = {name for name, value in vars(metrics).items() if isinstance(value, metrics.Metric)}
    used: set[str] = set()
    for package in ("activities", "api", "clients", "worker", "workflows"):
        for path in (PROJECT / package).rglob("*.py"):
            used |= {
                node.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "metrics"
            }
    assert variables <= used


def test_names_say_kind_and_unit() -> None:
    for metric in metrics.ALL:
        assert metric.name.startswith("scopemarchiver_")
        assert metric.name.endswith("_total") is (metric.kind is Kind.COUNTER), metric.name
        assert bool(metric.buckets) is (metric.kind is Kind.HISTOGRAM), metric.name
        assert sorted(metric.buckets) == [*metric.buckets], metric.name


def test_every_alert_leads_to_what_to_do() -> None:
    anchors: set[str] = set()
    for page in (PROJECT / "docs/how-to").glob("*.md"):
        for title in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE):
            anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            anchors.add(f"docs/how-to/{page.name}#{anchor}")
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] in anchors, rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]


def test_every_alert_is_tested_to_come() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus/alerts.test.yml").read_text())["tests"]
    samples = [
        sample["labels"] for test in tests for each in test["promql_expr_test"] for sample in each["exp_samples"]
    ]
    assert {rule["alert"] for rule in ALERTS} == set(re.findall(r'alertname="(\w+)"', " ".join(samples)))


def test_an_age_that_is_asked_for_is_counted() -> None:
    asked = {hours for _, text in expressions() for hours in re.findall(r'older_than_hours="(\w+)"', text)}
    assert asked <= {str(hours) for hours in metrics.OLDER_THAN_HOURS}


def test_dashboards_are_found_and_have_names_of_their_own() -> None:
    shown = [json.loads(path.read_text()) for path in DASHBOARDS]
    [provider] = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/scopemarchiver.yml").read_text())[
        "providers"
    ]
    [source] = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    assert (
        {board["uid"] for board in shown}
        == {path.stem for path in DASHBOARDS}
        == {"flow", "waiting", "errors", "servers"}
    )
    sources: set[Any] = {panel["datasource"]["uid"] for board in shown for panel in board["panels"]}
    assert sources == {source["uid"]}


def test_prometheus_asks_whom_the_rules_miss() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    missed = {job for _, text in expressions() for job in re.findall(r'job="([\w-]+)"', text)}
    assert missed == {"api", "worker-control", "worker-archival", "worker-retrieval"}
    assert missed <= jobs
    assert config["rule_files"] == ["alerts.yml"]
