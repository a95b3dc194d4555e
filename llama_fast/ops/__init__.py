"""What users call: each op checks its arguments, picks a backend, and carries its autograd rule."""
