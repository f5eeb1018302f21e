"""Generate synthetic training records. Each image is drawn from known content, so the answers are exact."""
