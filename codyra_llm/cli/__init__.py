"""Programs that are started by module name."""
