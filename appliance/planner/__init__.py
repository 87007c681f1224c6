"""The planner: a recommendation of models and cards, with predictions and their intervals."""
