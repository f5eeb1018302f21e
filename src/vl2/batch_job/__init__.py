"""Batch jobs: files, PDF pages or requests in, one output line for each in order; a stopped job can be continued."""
