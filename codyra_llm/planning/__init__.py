"""What is known of a run before any weight is loaded: its plan, memory, traffic and steps."""
