"""Labels in groups of G share one list of K inputs: a group is a small dense product over gathered inputs."""
