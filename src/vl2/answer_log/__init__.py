"""An opt-in log of questions and answers, in one SQLite file on this machine."""
