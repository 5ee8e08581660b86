"""What reads records: collect them, then summarize their cells. No torch."""
