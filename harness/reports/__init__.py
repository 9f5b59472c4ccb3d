"""Renderings of the records; one file and one line each."""

REGISTRY = {
    "table": "harness.reports.table:render",
    "markdown": "harness.reports.markdown_runs:markdown",
}
