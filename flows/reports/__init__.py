"""Reports as CSV, Markdown and HTML."""
