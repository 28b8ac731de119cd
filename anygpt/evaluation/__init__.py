"""Quality on held-out data of the synthetic world: tasks, judges, intervals, report."""
