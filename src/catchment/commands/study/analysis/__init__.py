"""What follows from the scores of a study: pure functions of a table, whatever the scores come from."""
