"""The web page at `/`: files that a browser loads from this server alone, and what they ask besides the API."""
