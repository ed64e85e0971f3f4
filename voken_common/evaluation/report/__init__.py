"""Reports of evaluations: numbers with their conventions, in the terminal, as JSON, Markdown and HTML, and compared."""
