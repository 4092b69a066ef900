"""Tasks on a trunk: what a task is, the kinds that there are, and the model that has several."""
