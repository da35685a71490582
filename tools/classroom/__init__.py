"""Classes: assignments for nbgrader, answers judged apart, what the class got wrong, a room without a network."""
