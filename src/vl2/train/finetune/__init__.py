"""Fine-tune on a user's own data: validate and split the data, plan the run, train, and score before and after."""
