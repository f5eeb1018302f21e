"""What draws training records: every answer is known because the picture was made from it."""
