"""Protocols, benchmark runs, and what they are shown with: tables, figures and the HTML report."""
