"""What `validate` looks at, a file each. Every check takes the open model and yields findings."""
