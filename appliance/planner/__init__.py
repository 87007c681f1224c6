"""The planner: which model on which card, answered with numbers and how sure they are."""
