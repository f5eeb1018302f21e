"""The web page at `/`. The browser loads all its files from this server."""
