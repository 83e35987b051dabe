"""Planning of a run before any weight is loaded: tasks, memory, traffic, steps and time."""
