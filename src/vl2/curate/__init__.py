"""Improve and inspect records: filters, jobs that query a model, previews, statistics, and the build of a stage."""
