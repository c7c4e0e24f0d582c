"""Self-contained HTML pages, plots and terminal output."""
